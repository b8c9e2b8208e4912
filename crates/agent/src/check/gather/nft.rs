//! What nft tells of itself and of the kernel.

use sluice_capture::program;
use sluice_model::Family;

use super::super::facts::{Feature, Lacking};

/// The kernel features that the rules need.
const FEATURES: [Feature; 11] = [
    Feature {
        name: "tables for both families",
        option: "CONFIG_NF_TABLES_INET",
        ruleset: "table inet sluice-check { chain c { type filter hook prerouting priority 0; }; }",
    },
    Feature {
        name: "TPROXY",
        option: "CONFIG_NFT_TPROXY",
        ruleset: "table inet sluice-check { chain c { type filter hook prerouting priority 0;
            meta l4proto tcp tproxy ip to 127.0.0.1:1; meta l4proto udp tproxy ip to 127.0.0.1:1; }; }",
    },
    TPROXY_V6,
    Feature {
        name: "matching of sockets",
        option: "CONFIG_NFT_SOCKET",
        ruleset: "table inet sluice-check { chain c { type filter hook prerouting priority 0;
            socket transparent 1 meta mark set 0x10; socket mark & 0x30 == 0x20 accept; }; }",
    },
    Feature {
        name: "looking up of addresses",
        option: "CONFIG_NFT_FIB_INET",
        ruleset: "table inet sluice-check { chain c { type filter hook prerouting priority 0;
            fib saddr type local accept; }; }",
    },
    Feature {
        name: "notrack",
        option: "CONFIG_NFT_CT",
        ruleset: "table inet sluice-check { chain c { type filter hook prerouting priority 0; notrack; }; }",
    },
    Feature {
        name: "reject",
        option: "CONFIG_NFT_REJECT_INET",
        ruleset: "table inet sluice-check { chain c { type filter hook prerouting priority 0;
            meta l4proto tcp reject with tcp reset; reject with icmpx port-unreachable; }; }",
    },
    Feature {
        name: "maps of several fields",
        option: "CONFIG_NF_TABLES",
        ruleset: "table inet sluice-check {
            map m { type ipv4_addr . inet_proto . inet_service : verdict; };
            chain c { type filter hook prerouting priority 0; ip daddr . meta l4proto . th dport vmap @m; }; }",
    },
    Feature {
        name: "sets of ranges of several fields",
        option: "CONFIG_NF_TABLES, 5.6 or later",
        ruleset: "table inet sluice-check {
            set s { type ipv4_addr . inet_service . ipv4_addr; flags interval;
                elements = { 192.0.2.1 . 80 . 198.51.100.0/24 }; }; }",
    },
    Feature {
        name: "sets that packets fill",
        option: "CONFIG_NF_TABLES",
        ruleset: "table inet sluice-check {
            set s { type ipv4_addr . inet_service; flags dynamic,timeout; timeout 5m; size 65536; };
            chain c { type filter hook prerouting priority 0; update @s { ip saddr . th sport } accept; }; }",
    },
    Feature {
        name: "routing again at output",
        option: "CONFIG_NF_TABLES_INET, 5.2 or later",
        ruleset: "table inet sluice-check { chain c { type route hook output priority 0; meta mark set 0x10; }; }",
    },
];

const TPROXY_V6: Feature = Feature {
    name: "TPROXY for IPv6",
    option: "CONFIG_NFT_TPROXY and CONFIG_NF_TPROXY_IPV6",
    ruleset: "table inet sluice-check { chain c { type filter hook prerouting priority 0;
        meta l4proto tcp tproxy ip6 to [::1]:1; meta l4proto udp tproxy ip6 to [::1]:1; }; }",
};

/// nft's line with its version, or why there is none.
pub(super) fn version() -> Result<String, String> {
    nft(&["--version"], "").map(|line| line.trim().to_owned())
}

/// Asks the kernel about features: `nft --check` sends rulesets and aborts before they are committed. The
/// kernel refuses what it lacks as it would in earnest.
pub(super) fn features(families: &[Family]) -> Vec<(Feature, Result<(), Lacking>)> {
    let needed =
        FEATURES.into_iter().filter(|feature| *feature != TPROXY_V6 || families.contains(&Family::V6));
    needed.map(|feature| (feature, has(&feature))).collect()
}

fn has(feature: &Feature) -> Result<(), Lacking> {
    program::run("nft", ["--check", "-f", "-"], feature.ruleset).map(drop).map_err(|error| {
        let is_refused = matches!(error, program::Error::Failed { .. });
        if is_refused { Lacking::Refused(words(error)) } else { Lacking::Unknown(words(error)) }
    })
}

/// Runs nft. Returns its output, or the first line of its error.
pub(super) fn nft(arguments: &[&str], input: &str) -> Result<String, String> {
    let printed = program::run("nft", arguments, input).map_err(words)?;
    Ok(String::from_utf8_lossy(&printed).into_owned())
}

fn words(error: program::Error) -> String {
    let program::Error::Failed { message, .. } = error else { return error.to_string() };
    let line = message.split("; ").next().unwrap_or(&message);
    // The position in the input means nothing to the reader.
    line.split_once("Error: ").map_or(line, |(_, error)| error).to_owned()
}
