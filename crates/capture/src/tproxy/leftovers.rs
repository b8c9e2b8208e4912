//! What an earlier agent has left in the table about some addresses, taken out before there is anything else to be written: an
//! agent that may not reach the apiserver otherwise. Runs nft, and waits for it.

use std::net::SocketAddr;

use sluice_model::{Family, Frontend, Protocol};

use super::elements::Key;
use super::generation::{Generation, Generations};
use super::ruleset::{INET, TABLE};
use super::{Error, nft};
use crate::program;

/// Looks for it. An agent that still runs may put it back: then it is looked for again when anything changes in nftables.
#[derive(Debug)]
pub struct Leftovers {
    generations: Generations,
    /// What was looked for last, and the state of nftables after that.
    looked: Option<(Vec<SocketAddr>, Generation)>,
}

/// What came of looking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Released {
    /// Addresses that connections were led away from, and are not any more.
    pub released: Vec<SocketAddr>,
    /// All addresses that are known to be no cluster IPs, those among them.
    pub external: Vec<SocketAddr>,
}

impl Leftovers {
    /// Gets ready.
    ///
    /// # Errors
    /// The system has no socket to give.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { generations: Generations::open()?, looked: None })
    }

    /// Has TCP connections to these addresses go where they are addressed to, unless they are cluster IPs. `None` where that
    /// was looked for before and nothing has changed since.
    ///
    /// # Errors
    /// nft cannot be run, or the kernel does not answer.
    pub fn release(&mut self, addresses: &[SocketAddr]) -> Result<Option<Released>, Error> {
        let before = self.generations.current()?;
        if self.looked.as_ref().is_some_and(|(looked, at)| looked == addresses && *at == before) {
            return Ok(None);
        }
        let mut found = Released::default();
        if is_there()? {
            for address in addresses {
                if has(Key::ClusterIp(address.ip()))? {
                    continue;
                }
                found.external.push(*address);
                if release(*address)? {
                    found.released.push(*address);
                }
            }
        }
        // What was taken out may have been put back meanwhile.
        self.looked = found.released.is_empty().then(|| (addresses.to_vec(), before));
        Ok(Some(found))
    }
}

/// Whether there is a table.
fn is_there() -> Result<bool, Error> {
    let tables = nft::run(&["list", "tables", INET], "")?;
    let ours = format!("table {INET} {TABLE}");
    Ok(String::from_utf8_lossy(&tables).lines().any(|line| line == ours))
}

/// Takes out what leads connections to an address away. Whether there was anything.
fn release(address: SocketAddr) -> Result<bool, Error> {
    let frontend = delete(Key::Frontend(Frontend { address, protocol: Protocol::Tcp }))?;
    // For all addresses of the node, until it is known which Services there are.
    let (ip, port) = (address.ip(), address.port());
    let node_port = Key::NodePort(Family::of(ip), Protocol::Tcp, port);
    let is_nodes = has(Key::NodeIp(ip))?;
    Ok((is_nodes && delete(node_port)?) || frontend)
}

fn has(key: Key) -> Result<bool, Error> {
    succeeds("get", key)
}

fn delete(key: Key) -> Result<bool, Error> {
    succeeds("delete", key)
}

/// Whether nft does something to an element: not where it is not there.
fn succeeds(verb: &str, key: Key) -> Result<bool, Error> {
    let (set, element) = (key.place().to_string(), format!("{{ {key} }}"));
    match nft::run(&[verb, "element", INET, TABLE, &set, &element], "") {
        Ok(_) => Ok(true),
        Err(Error::Nft(program::Error::Failed { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}
