//! Decides what to remove.

use std::collections::BTreeSet;

use sluice_model::Family;

use super::command::Command;
use super::look::{NFT_TABLE, Sight};
use super::{Backend, Trace, iptables_save, ipvs, nft_family, nft_listing};

/// Everything to be removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// In order. Each step is run whether or not earlier ones succeeded, up to its first command that fails.
    pub steps: Vec<Step>,
    /// Objects that stay on purpose, with the reason.
    pub kept: Vec<String>,
}

/// Commands that belong together, and the objects that they remove.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub traces: Vec<Trace>,
    pub commands: Vec<Command>,
}

impl Plan {
    pub(super) fn new(sight: &Sight) -> Self {
        let mut plan = Self::default();
        plan.stop_ipvs(sight);
        plan.remove_tables(sight);
        // Sets can be destroyed only when no rule refers to them any more.
        if !sight.ip_sets.is_empty() {
            let commands = sight.ip_sets.iter().map(|set| Command::new("ipset", &["destroy", set]));
            let traces = vec![Trace::IpSets(sight.ip_sets.len())];
            plan.steps.push(Step { traces, commands: commands.collect() });
        }
        plan
    }

    /// All leftovers of kube-proxy.
    pub(super) fn traces(&self) -> Vec<Trace> {
        self.steps.iter().flat_map(|step| step.traces.clone()).collect()
    }

    /// Removes virtual services before the interface, which stays if they do: without its addresses, even a
    /// later run could not tell whose they are.
    fn stop_ipvs(&mut self, sight: &Sight) {
        let Some(addresses) = &sight.ipvs_interface else { return };
        let is_ours = |service: &&ipvs::VirtualService| ipvs::is_kube_proxys(service, addresses);
        let services: Vec<_> = sight.virtual_services.iter().flatten().filter(is_ours).collect();
        let others = sight.virtual_services.len() - services.len();
        if others > 0 {
            self.kept.push(format!("{others} virtual services of IPVS that are not kube-proxy's"));
        }
        let (mut traces, mut commands) = (Vec::new(), Vec::new());
        if !services.is_empty() {
            let delete = |service: &&ipvs::VirtualService| {
                let address = service.address.to_string();
                Command::new("ipvsadm", &["--delete-service", service.option, &address])
            };
            match others {
                0 => commands.push(Command::new("ipvsadm", &["--clear"])),
                _ => commands.extend(services.iter().map(delete)),
            }
            traces.push(Trace::VirtualServices(services.len()));
        }
        commands.push(Command::new("ip", &["link", "delete", ipvs::INTERFACE]));
        traces.push(Trace::IpvsInterface);
        self.steps.push(Step { traces, commands });
    }

    /// Removes everything in nftables in one transaction, then each table of iptables-legacy.
    fn remove_tables(&mut self, sight: &Sight) {
        let mut traces: Vec<Trace> = sight.nft_tables.iter().map(|family| Trace::NftTable(*family)).collect();
        let delete = |family: &Family| format!("delete table {} {NFT_TABLE}\n", nft_family(*family));
        let mut transaction: String = sight.nft_tables.iter().map(delete).collect();
        let mut legacy = Vec::new();
        for table in &sight.tables {
            let removal = table.removal();
            let users: BTreeSet<&str> = removal.kept.values().copied().collect();
            if !removal.kept.is_empty() {
                let chains: Vec<&str> = removal.kept.keys().copied().collect();
                let users: Vec<&str> = users.into_iter().filter(|user| !chains.contains(user)).collect();
                let (chains, users) = (chains.join(", "), users.join(", "));
                let family = nft_family(table.family);
                self.kept.push(format!("chains of {family} {}: {chains}: {users} needs them", table.name));
            }
            if removal.chains.is_empty() {
                continue;
            }
            let trace = Trace::Chains {
                backend: table.backend,
                family: table.family,
                table: table.name.clone(),
                chains: removal.chains.len(),
                jumps: removal.rules.len(),
            };
            match table.backend {
                Backend::Nft => {
                    traces.push(trace);
                    transaction.push_str(&nft_listing::script(table, &removal));
                }
                Backend::Legacy => {
                    let [v4, v6] = sight.legacy_restore;
                    let program = if table.family == Family::V4 { v4 } else { v6 };
                    // Up to 5 s for the lock that all iptables programs share.
                    let restore = program.map(|name| Command::new(name, &["--noflush", "--wait=5"]));
                    let script = iptables_save::script(table, &removal);
                    let commands =
                        restore.into_iter().map(|restore| restore.with_input(script.clone())).collect();
                    legacy.push(Step { traces: vec![trace], commands });
                }
            }
        }
        if !transaction.is_empty() {
            let commands = vec![Command::new("nft", &["-f", "-"]).with_input(transaction)];
            self.steps.push(Step { traces, commands });
        }
        self.steps.extend(legacy);
    }
}

#[cfg(test)]
mod tests {
    use super::super::chains::Table;
    use super::*;

    /// The commands of a plan, in order, with the input in brackets.
    fn commands(sight: &Sight) -> Vec<String> {
        let plan = Plan::new(sight);
        let commands = plan.steps.into_iter().flat_map(|step| step.commands);
        commands
            .map(|c| {
                let input = if c.input.is_empty() { String::new() } else { format!(" [{}]", c.input.trim()) };
                format!("{} {}{input}", c.program, c.arguments.join(" "))
            })
            .collect()
    }

    fn table(dump: &str, backend: Backend) -> Table {
        let mut tables = iptables_save::parse(dump, Family::V4);
        Table { backend, ..tables.remove(0) }
    }

    const NAT: &str =
        "*nat\n:OUTPUT ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n-A OUTPUT -j KUBE-SERVICES\nCOMMIT\n";

    #[test]
    fn nothing_seen_nothing_done() {
        assert_eq!(Plan::new(&Sight::default()), Plan::default());
    }

    #[test]
    fn all_of_nftables_is_one_transaction() {
        let mut nat = table(NAT, Backend::Nft);
        nat.rules[0].id = "7".to_owned();
        let sight = Sight { nft_tables: vec![Family::V4, Family::V6], tables: vec![nat], ..Sight::default() };
        let wanted = "nft -f - [delete table ip kube-proxy\ndelete table ip6 kube-proxy\n\
                      delete rule ip nat OUTPUT handle 7\nflush chain ip nat KUBE-SERVICES\n\
                      delete chain ip nat KUBE-SERVICES]";
        assert_eq!(commands(&sight), [wanted]);
        let traces: Vec<_> = Plan::new(&sight).traces().iter().map(Trace::to_string).collect();
        assert_eq!(
            traces,
            [
                "nftables table ip kube-proxy",
                "nftables table ip6 kube-proxy",
                "1 chain of iptables-nft in table nat, 1 rule leading to them",
            ]
        );
    }

    #[test]
    fn legacy_tables_go_through_the_program_that_showed_them() {
        let sight = Sight {
            tables: vec![table(NAT, Backend::Legacy)],
            legacy_restore: [Some("iptables-restore"), None],
            ..Sight::default()
        };
        let wanted = "iptables-restore --noflush --wait=5 [*nat\n:KUBE-SERVICES - [0:0]\n\
                      -D OUTPUT -j KUBE-SERVICES\n-X KUBE-SERVICES\nCOMMIT]";
        assert_eq!(commands(&sight), [wanted]);
    }

    #[test]
    fn what_somebody_needs_is_kept_and_said() {
        let dump = "*nat\n:OUTPUT ACCEPT [0:0]\n:CNI-MARK - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
                    :KUBE-POSTROUTING - [0:0]\n-A CNI-MARK -j KUBE-MARK-MASQ\nCOMMIT\n";
        let sight = Sight { tables: vec![table(dump, Backend::Nft)], ..Sight::default() };
        let plan = Plan::new(&sight);
        assert!(plan.steps.is_empty(), "{plan:?}");
        assert_eq!(plan.kept, ["chains of ip nat: KUBE-MARK-MASQ, KUBE-POSTROUTING: CNI-MARK needs them"]);
    }

    fn ipvs(services: &str, interface: Option<&[&str]>) -> Sight {
        Sight {
            virtual_services: ipvs::virtual_services(services),
            ipvs_interface: interface.map(|ips| ips.iter().map(|ip| ip.parse().unwrap()).collect()),
            ..Sight::default()
        }
    }

    #[test]
    fn ipvs_goes_at_once_where_all_of_it_is_kube_proxys() {
        let sight = ipvs("TCP  0A600001:01BB rr\nTCP  C0000201:7530 rr\n", Some(&["10.96.0.1"]));
        assert_eq!(commands(&sight), ["ipvsadm --clear", "ip link delete kube-ipvs0"]);
        let plan = Plan::new(&sight);
        assert_eq!(plan.steps.len(), 1, "the interface goes only when the virtual services have gone");
        assert_eq!(plan.traces(), [Trace::VirtualServices(2), Trace::IpvsInterface]);
    }

    #[test]
    fn virtual_services_of_others_are_kept() {
        let services =
            "TCP  0A600001:01BB rr\nUDP  [fd00::1]:0035 rr\nTCP  C0000201:0050 rr\nFWM  00000001 rr\n";
        let sight = ipvs(services, Some(&["10.96.0.1", "fd00::1"]));
        let wanted = [
            "ipvsadm --delete-service --tcp-service 10.96.0.1:443",
            "ipvsadm --delete-service --udp-service [fd00::1]:53",
            "ip link delete kube-ipvs0",
        ];
        assert_eq!(commands(&sight), wanted);
        assert_eq!(Plan::new(&sight).kept, ["2 virtual services of IPVS that are not kube-proxy's"]);
    }

    #[test]
    fn ipvs_without_kube_proxys_interface_is_somebody_elses() {
        assert_eq!(Plan::new(&ipvs("TCP  0A600001:01BB rr\n", None)), Plan::default());
    }

    #[test]
    fn ip_sets_go_after_the_rules_that_look_at_them() {
        let sight = Sight {
            nft_tables: vec![Family::V4],
            ip_sets: vec!["KUBE-CLUSTER-IP".to_owned(), "KUBE-LOOP-BACK".to_owned()],
            ..Sight::default()
        };
        let wanted = [
            "nft -f - [delete table ip kube-proxy]",
            "ipset destroy KUBE-CLUSTER-IP",
            "ipset destroy KUBE-LOOP-BACK",
        ];
        assert_eq!(commands(&sight), wanted);
    }
}
