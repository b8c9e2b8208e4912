//! Judges this process's rights, the kernel and nft.

use super::super::facts::{Facts, Lacking};
use super::super::finding::Finding;
use crate::check::judge::network::family_name;

/// The first nft that has everything that the rules use.
const NFT: [u64; 3] = [1, 0, 1];

/// The first long-term kernel that can refuse a packet before it is routed: `reject` in a prerouting chain came
/// with 5.9.
const KERNEL: [u64; 3] = [5, 10, 0];

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = capabilities(facts);
    findings.push(kernel(&facts.kernel));
    findings.push(nft(&facts.nft));
    findings.extend(features(facts));
    findings.extend(transparent(facts));
    findings
}

fn capabilities(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = "capabilities";
    let mut findings = Vec::new();
    if !facts.capabilities.net_admin {
        findings.push(Finding::problem(
            ABOUT,
            "without CAP_NET_ADMIN neither rules nor routes can be set, and little of this can be checked",
            "run as root, or give the container the capability NET_ADMIN",
        ));
    }
    let free = facts.first_free_port.unwrap_or(1024);
    if !facts.capabilities.net_bind_service && free > 1 {
        findings.push(Finding::problem(
            ABOUT,
            format!("without CAP_NET_BIND_SERVICE no UDP Service on a port below {free} can be answered, DNS for one"),
            "give the container the capability NET_BIND_SERVICE, or set net.ipv4.ip_unprivileged_port_start=0",
        ));
    }
    if !facts.capabilities.net_raw {
        findings.push(Finding::warning(
            ABOUT,
            "without CAP_NET_RAW a UDP client whose endpoint refuses, or that is over a limit, waits for an answer instead of being refused",
            "give the container the capability NET_RAW",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(ABOUT, "all that are needed"));
    }
    findings
}

fn kernel(release: &str) -> Finding {
    const ABOUT: &str = "kernel";
    if version(release).is_some_and(|version| version < KERNEL) {
        let [major, minor, _] = KERNEL;
        return Finding::problem(
            ABOUT,
            format!(
                "{release} is too old to refuse packets before they are routed, or has no long-term support"
            ),
            format!("use {major}.{minor} or later"),
        );
    }
    Finding::ok(ABOUT, release)
}

fn nft(version_line: &Result<String, String>) -> Finding {
    const ABOUT: &str = "nft";
    let [major, minor, patch] = NFT;
    let wanted = format!("{major}.{minor}.{patch} or later");
    match version_line {
        // The reason includes the remedy if nft is missing.
        Err(error) => Finding::problem(
            ABOUT,
            format!("the program cannot be used: {error}"),
            format!("see that nft --version says {wanted}"),
        ),
        Ok(line) if version(line).is_some_and(|version| version < NFT) => {
            Finding::problem(ABOUT, format!("{line} is too old"), format!("install nftables {wanted}"))
        }
        Ok(line) => Finding::ok(ABOUT, line),
    }
}

fn features(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = "nftables";
    let mut findings = Vec::new();
    let (mut there, mut unknown, mut why) = (Vec::new(), Vec::new(), None);
    for (feature, said) in &facts.features {
        match said {
            Ok(()) => there.push(feature.name),
            Err(Lacking::Refused(error)) => findings.push(Finding::problem(
                ABOUT,
                format!("the kernel has no {}: {error}", feature.name),
                format!("load its module, or use a kernel with {}", feature.option),
            )),
            Err(Lacking::Unknown(error)) => {
                unknown.push(feature.name);
                why = why.or(Some(error));
            }
        }
    }
    if let Some(why) = why {
        let what = format!("the kernel could not be asked whether it has {}: {why}", unknown.join(", "));
        findings.push(Finding::problem(ABOUT, what, "see to that, and check again"));
    }
    if findings.is_empty() && !there.is_empty() {
        findings.push(Finding::ok(ABOUT, format!("the kernel has {}", there.join(", "))));
    }
    findings
}

fn transparent(facts: &Facts) -> Vec<Finding> {
    const ABOUT: &str = "sockets";
    let failed = facts.transparent.iter().filter_map(|(family, tried)| Some((family, tried.as_ref().err()?)));
    let mut findings: Vec<Finding> = failed
        .map(|(family, error)| {
            let what = format!("no transparent sockets of {}: {error}", family_name(*family));
            Finding::problem(ABOUT, what, "run as root, or give the container the capability NET_ADMIN")
        })
        .collect();
    if findings.is_empty() && !facts.transparent.is_empty() {
        findings.push(Finding::ok(ABOUT, "can have addresses that are not this node's (IP_TRANSPARENT)"));
    }
    findings
}

/// The first three numbers of the version in a text: `6.1.0-28-amd64`, `nftables v1.0.6 (Lester Gooch #5)`.
fn version(text: &str) -> Option<[u64; 3]> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let mut numbers = text.get(start..)?.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    Some([numbers.next()?, numbers.next()?, numbers.next().unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        #[rustfmt::skip]
        let cases = [
            ("6.1.0-28-amd64",                    Some([6, 1, 0])),
            ("5.15.153.1-microsoft-standard",     Some([5, 15, 153])),
            ("nftables v1.0.6 (Lester Gooch #5)", Some([1, 0, 6])),
            ("nftables v1.1.3 (Commodore Bullmoose #4)", Some([1, 1, 3])),
            ("4.18",                              Some([4, 18, 0])),
            ("unknown",                           None),
            ("",                                  None),
        ];
        for (text, wanted) in cases {
            assert_eq!(version(text), wanted, "{text}");
        }
    }
}
