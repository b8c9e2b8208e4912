//! Reads this node's state from the system.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use sluice_model::Family;

use super::Error;
use super::chains::{TABLES, Table, is_kube_proxys};
use super::command::Command;
use super::ipvs::{self, VirtualService};
use super::{iptables_save, nft_family, nft_listing};

/// The table of kube-proxy's nftables mode.
pub(super) const NFT_TABLE: &str = "kube-proxy";

/// The state that a removal is planned from.
#[derive(Debug, Default)]
pub(super) struct Sight {
    /// Families with a table of the nftables mode.
    pub nft_tables: Vec<Family>,
    /// Tables of iptables, of both backends, that have chains of kube-proxy's.
    pub tables: Vec<Table>,
    /// The programs that change the tables of iptables-legacy.
    pub legacy_restore: [Option<&'static str>; 2],
    /// Virtual services of IPVS.
    pub virtual_services: Vec<Option<VirtualService>>,
    /// The addresses of the IPVS mode's interface; `None` if there is no such interface.
    pub ipvs_interface: Option<BTreeSet<IpAddr>>,
    /// IP sets by name.
    pub ip_sets: Vec<String>,
    /// Parts of the system that could not be checked, with advice.
    pub unseen: Vec<String>,
}

/// The programs of iptables-legacy for a family: to save and to restore; each by its name and, if that does not
/// exist, by the name that may be of either backend.
struct Legacy {
    names: &'static str,
    programs: [(&'static str, &'static str); 2],
}

const LEGACY: [(Family, Legacy); 2] = [
    (
        Family::V4,
        Legacy {
            names: "ip_tables_names",
            programs: [
                ("iptables-legacy-save", "iptables-legacy-restore"),
                ("iptables-save", "iptables-restore"),
            ],
        },
    ),
    (
        Family::V6,
        Legacy {
            names: "ip6_tables_names",
            programs: [
                ("ip6tables-legacy-save", "ip6tables-legacy-restore"),
                ("ip6tables-save", "ip6tables-restore"),
            ],
        },
    ),
];

impl Sight {
    /// Reads everything.
    ///
    /// # Errors
    /// The ruleset of nftables cannot be read: without it, the rest makes no sense.
    pub(super) fn take() -> Result<Self, Error> {
        let mut sight = Self::default();
        sight.look_at_nftables()?;
        for (family, legacy) in &LEGACY {
            if let Err(unseen) = sight.look_at_legacy(*family, legacy) {
                sight.unseen.push(unseen);
            }
        }
        sight.look_at_ipvs();
        Ok(sight)
    }

    fn look_at_nftables(&mut self) -> Result<(), Error> {
        let unexpected = |error| Error::Unexpected { program: "nft", error };
        let json = Command::new("nft", &["--json", "list", "tables"]).run()?;
        for (family, name) in nft_listing::tables(&json).map_err(unexpected)? {
            if name == NFT_TABLE {
                self.nft_tables.push(family);
            } else if TABLES.contains(&name.as_str()) {
                let list = ["--json", "--terse", "list", "table", nft_family(family), &name];
                let json = Command::new("nft", &list).run()?;
                self.add_table(nft_listing::table(&json, family, &name).map_err(unexpected)?);
            }
        }
        Ok(())
    }

    /// Does not query a kernel without iptables-legacy tables, because that would create them.
    fn look_at_legacy(&mut self, family: Family, legacy: &Legacy) -> Result<(), String> {
        let names = read(&format!("/proc/thread-self/net/{}", legacy.names));
        let tables: Vec<&str> = names.split_whitespace().collect();
        if tables.is_empty() {
            return Ok(());
        }
        let tables = tables.join(", ");
        for (save, restore) in legacy.programs {
            let is_legacy = match Command::new(save, &["--version"]).run() {
                Ok(version) => !String::from_utf8_lossy(&version).contains("nf_tables"),
                Err(_) => false,
            };
            if !is_legacy {
                continue;
            }
            let dump = Command::new(save, &[]).run().map_err(|error| format!("tables {tables}: {error}"))?;
            for table in iptables_save::parse(&String::from_utf8_lossy(&dump), family) {
                self.add_table(table);
            }
            let [v4, v6] = &mut self.legacy_restore;
            *(if family == Family::V4 { v4 } else { v6 }) = Some(restore);
            return Ok(());
        }
        let [(program, _), _] = legacy.programs;
        Err(format!(
            "the tables of iptables-legacy ({tables}) cannot be looked at without {program}: install it (on \
             Debian the package iptables), or restart the node"
        ))
    }

    fn add_table(&mut self, table: Table) {
        if table.chains.iter().any(|chain| is_kube_proxys(&chain.name)) {
            self.tables.push(table);
        }
    }

    fn look_at_ipvs(&mut self) {
        self.virtual_services = ipvs::virtual_services(&read("/proc/thread-self/net/ip_vs"));
        let devices = read("/proc/thread-self/net/dev");
        if devices
            .lines()
            .filter_map(|line| line.split_once(':'))
            .any(|(name, _)| name.trim() == ipvs::INTERFACE)
        {
            let shown = Command::new("ip", &["-json", "address", "show", "dev", ipvs::INTERFACE]).run();
            let addresses = shown.and_then(|json| {
                ipvs::addresses(&json).map_err(|error| Error::Unexpected { program: "ip", error })
            });
            match addresses {
                Ok(addresses) => self.ipvs_interface = Some(addresses),
                Err(error) => self.unseen.push(format!("interface {}: {error}", ipvs::INTERFACE)),
            }
        }
        // Without the module there are no sets, and a query would load it.
        if Path::new("/sys/module/ip_set").exists()
            && let Ok(names) = Command::new("ipset", &["list", "-name"]).run()
        {
            let names = String::from_utf8_lossy(&names);
            self.ip_sets =
                names.lines().filter(|name| ipvs::is_set_kube_proxys(name)).map(str::to_owned).collect();
        }
    }
}

/// A file of the kernel; empty if it does not exist or may not be read. A process without that permission could
/// not read the ruleset either.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
