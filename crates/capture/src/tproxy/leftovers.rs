//! Removes an earlier agent's elements for some addresses before anything else is written: otherwise an agent
//! may be unable to reach the apiserver. Runs nft, and waits for it.

use std::net::SocketAddr;

use sluice_model::{Family, Frontend, Protocol};

use super::elements::Key;
use super::generation::{Generation, Generations};
use super::ruleset::{INET, TABLE};
use super::{Error, nft};
use crate::program;

/// Removes such elements. An agent that still runs may add them again, so they are looked for again after any
/// change of nftables.
#[derive(Debug)]
pub struct Leftovers {
    generations: Generations,
    /// The addresses of the last search, and the state of nftables after it.
    looked: Option<(Vec<SocketAddr>, Generation)>,
}

/// The result of a search.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Released {
    /// Addresses whose connections were captured, and are not any more.
    pub released: Vec<SocketAddr>,
    /// All addresses that are known not to be cluster IPs, including these.
    pub external: Vec<SocketAddr>,
}

impl Leftovers {
    /// Prepares.
    ///
    /// # Errors
    /// The system cannot open a socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { generations: Generations::open()?, looked: None })
    }

    /// Makes TCP connections to these addresses reach them directly, unless they are cluster IPs. `None` if the
    /// same addresses were searched for before and nothing has changed since.
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
        // A running agent may have added the removed elements again.
        self.looked = found.released.is_empty().then(|| (addresses.to_vec(), before));
        Ok(Some(found))
    }
}

/// Whether the table exists.
fn is_there() -> Result<bool, Error> {
    let tables = nft::run(&["list", "tables", INET], "")?;
    let ours = format!("table {INET} {TABLE}");
    Ok(String::from_utf8_lossy(&tables).lines().any(|line| line == ours))
}

/// Removes the elements that capture connections to an address. Returns whether there were any.
fn release(address: SocketAddr) -> Result<bool, Error> {
    let frontend = delete(Key::Frontend(Frontend { address, protocol: Protocol::Tcp }))?;
    // This releases all addresses of the node, until it is known which Services there are.
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

/// Whether a command of nft for an element succeeds: it fails if the element does not exist.
fn succeeds(verb: &str, key: Key) -> Result<bool, Error> {
    let (set, element) = (key.place().to_string(), format!("{{ {key} }}"));
    match nft::run(&[verb, "element", INET, TABLE, &set, &element], "") {
        Ok(_) => Ok(true),
        Err(Error::Nft(program::Error::Failed { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}
