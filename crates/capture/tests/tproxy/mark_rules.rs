//! Policy rules of others, by packets' marks.

use sluice_capture::tproxy::{MarkRule, others_mark_rules};

use crate::namespace::{in_namespace, run};
use crate::services::config;

#[test]
fn rules_of_others_are_found_and_our_own_are_none_of_them() {
    in_namespace(|| {
        run("ip link set lo up");
        let _ours = sluice_capture::tproxy::Tproxy::start(config()).unwrap();
        assert!(run("ip rule").contains("fwmark 0x10/0x30"));
        assert_eq!(others_mark_rules().unwrap(), []);
        // As wg-quick has it, and as a guide to two uplinks.
        run("ip -6 rule add not fwmark 51820 lookup 51820 priority 200");
        run("ip rule add fwmark 0x20/0xff lookup 100 priority 100");
        run("ip rule add from 192.0.2.1 lookup 100 priority 101");
        let said: Vec<(String, bool)> = others_mark_rules()
            .unwrap()
            .iter()
            .map(|rule| (rule.to_string(), MarkRule::clashes(rule)))
            .collect();
        let wanted = [
            ("fwmark 0x20/0xff, IPv4 priority 100", true),
            ("fwmark 0xca6c/0xffffffff, IPv6 priority 200", false),
        ];
        assert_eq!(said, wanted.map(|(rule, clashes)| (rule.to_owned(), clashes)));
    });
}
