//! Decides which agent maintains nftables and routing if two run on a node, as they do during an update: the one
//! that started last, for as long as it lives.
//!
//! The owner is the element of a set, in a table of its own that changes of structure and version do not affect.
//! Each of our transactions deletes the element of the supposed owner and adds our own ([`Owner::execute`]).
//! Deleting an element that does not exist is an error, so the kernel rejects any transaction of a replaced
//! agent, however late it comes. Checking who the owner is costs the kernel one small answer, and starts no
//! program.
//!
//! `hung`: what a new owner does about a predecessor that keeps its listeners.
//!
//! An agent's number is the port of a netlink socket, which no other socket of the network namespace can have
//! while it is open. So agents know which of them are alive, across containers and without a file, and the
//! kernel releases the number of an agent that dies.

mod hung;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netlink_packet_core::{NLM_F_DUMP, NetlinkBuffer, NlasIterator};
use rustix::io::Errno;
use tracing::info;

use self::hung::Hung;
use super::generation::NFGENMSG;
use super::netlink::{Netlink, attribute, nftables_request};
use super::ruleset::INET;
use super::{Error, Ports, nft};

/// The table's name.
pub(super) const TABLE: &str = "sluice_owner";

/// The set's name.
const SET: &str = "agent";

/// NFT_MSG_GETSETELEM, in NFNL_SUBSYS_NFTABLES.
const GET_ELEMENTS: u16 = 10 << 8 | 13;
/// NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS.
const LIST: (u16, u16, u16) = (1, 2, 3);
/// NFTA_SET_ELEM_KEY and, in it, NFTA_DATA_VALUE.
const ELEMENT: (u16, u16) = (1, 1);

/// NFPROTO_INET.
const FAMILY: u8 = 1;

/// An agent: the port of its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Agent(u32);

/// Shows that an agent serves: the socket whose port is its number.
#[derive(Debug)]
struct Sign {
    agent: Agent,
    _socket: Netlink,
}

/// Whether this agent is the owner or has been replaced, for the part that has the listeners.
#[derive(Debug, Default)]
pub struct Tenure(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// `None` until it is the owner for the first time, and after its end.
    sign: Option<Sign>,
    is_replaced: bool,
    /// How often it has become the owner again after another one.
    returns: u64,
    /// The ports at which to open additional listeners.
    wanted: Option<Ports>,
    /// Whether they are open.
    are_open: Option<bool>,
    /// A report about an agent that hangs.
    trouble: Option<String>,
}

/// This agent's knowledge of the owner.
#[derive(Debug)]
pub(super) struct Owner {
    netlink: Netlink,
    tenure: Arc<Tenure>,
    /// This agent's number, while it is the owner.
    own: Option<Agent>,
    /// The last owner that was seen.
    seen: Option<Agent>,
    /// The agent that has replaced this one.
    successor: Option<Agent>,
    /// The ports at which captured packets are delivered.
    ports: Ports,
    hung: Option<Hung>,
}

impl Agent {
    /// Every agent's number has this bit. Process numbers do not: the kernel gives those to sockets that ask for no
    /// port.
    const FIRST: u32 = 1 << 31;

    fn any() -> Self {
        let number = RandomState::new().hash_one(std::process::id());
        Self(u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default() | Self::FIRST)
    }

    /// Whether its socket is open.
    fn is_alive(self) -> bool {
        // Any other error says nothing about the agent: it stays the owner, and is checked again.
        Netlink::netfilter_at(self.0).is_err()
    }
}

impl Sign {
    fn make() -> io::Result<Self> {
        loop {
            let agent = Agent::any();
            match Netlink::netfilter_at(agent.0) {
                Ok(socket) => return Ok(Self { agent, _socket: socket }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Tenure {
    /// Whether another living agent has replaced this one. It may become the owner again.
    pub fn is_replaced(&self) -> bool {
        self.state().is_replaced
    }

    /// How often this agent has become the owner again. Another one may have destroyed its listeners meanwhile,
    /// even if this one never saw itself replaced.
    pub fn returns(&self) -> u64 {
        self.state().returns
    }

    /// The ports at which to open additional listeners, returned once: an agent that hangs has listeners at the
    /// present ones, too. Must be answered ([`Tenure::answer`]).
    pub fn take_wanted_ports(&self) -> Option<Ports> {
        self.state().wanted.take()
    }

    /// Tells whether all listeners are open there.
    pub fn answer(&self, are_open: bool) {
        self.state().are_open = Some(are_open);
    }

    /// A report about another agent on this node that is in trouble.
    pub fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }

    /// Notes that this agent accepts no new connections: a successor need not wait for that any longer.
    pub fn release(&self) {
        let mut state = self.state();
        if state.is_replaced {
            state.sign = None;
        }
    }

    /// Notes that this agent maintains nothing any more.
    pub(super) fn end(&self) {
        self.state().sign = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owner {
    /// Prepares; the agent is not the owner yet.
    ///
    /// # Errors
    /// The system cannot open a socket.
    pub(super) fn open(ports: Ports) -> Result<Self, Error> {
        let netlink = Netlink::netfilter().map_err(Error::Netlink)?;
        let tenure = Arc::default();
        Ok(Self { netlink, tenure, own: None, seen: None, successor: None, ports, hung: None })
    }

    /// The ports at which captured packets should be delivered. They change if a predecessor hangs.
    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    pub(super) fn tenure(&self) -> &Arc<Tenure> {
        &self.tenure
    }

    /// Whether this agent was the owner at the last check.
    pub(super) fn is_current(&self) -> bool {
        self.own.is_some()
    }

    /// Checks who the owner is. Becomes the owner if no other agent lives, and at the first call in any case.
    /// Returns whether it is.
    ///
    /// # Errors
    /// The kernel does not tell, or nft fails; or another agent became the owner meanwhile ([`Error::Replaced`])
    /// and this has to be called again. The state is unchanged.
    pub(super) fn look(&mut self) -> Result<bool, Error> {
        let there = self.read()?;
        self.look_for_hung();
        if self.own.is_some() && (there == self.own || there.is_none()) {
            // There is no element if somebody has flushed everything; the next transaction adds it again.
            self.seen = there;
            return Ok(true);
        }
        self.seen = there;
        let is_first = self.own.is_none() && self.successor.is_none();
        // If there is no element, somebody has flushed everything, and the owner will add it again soon.
        if let Some(other) = there.or(self.successor)
            && !is_first
            && other.is_alive()
        {
            self.leave(other);
            return Ok(false);
        }
        self.take(is_first).map(|()| true)
    }

    fn leave(&mut self, successor: Agent) {
        (self.own, self.successor) = (None, Some(successor));
        if !std::mem::replace(&mut self.tenure.state().is_replaced, true) {
            info!("another agent has taken this one's place, and keeps nftables and routing from now on");
        }
    }

    fn take(&mut self, is_first: bool) -> Result<(), Error> {
        let sign = Sign::make().map_err(Error::Netlink)?;
        let agent = sign.agent;
        let predecessor = self.seen.filter(|seen| is_first && seen.is_alive());
        if let Err(error) = nft::execute(&self.succession(agent)) {
            // If another agent became the owner meanwhile, that is the cause, and it will be seen next time.
            return Err(if self.read()? == self.seen { error } else { Error::Replaced });
        }
        (self.own, self.seen, self.successor) = (Some(agent), Some(agent), None);
        {
            let mut state = self.tenure.state();
            (state.sign, state.is_replaced) = (Some(sign), false);
            state.returns += u64::from(!is_first);
        }
        if is_first {
            self.wait_for(predecessor);
        }
        Ok(())
    }

    /// Executes a script as one transaction, which has no effect if another agent has become the owner.
    ///
    /// # Errors
    /// That ([`Error::Replaced`]), or an error of nft.
    pub(super) fn execute(&mut self, script: &str) -> Result<(), Error> {
        let own = self.own.ok_or(Error::Replaced)?;
        let outcome = nft::execute(&(self.succession(own) + script));
        self.seen = match &outcome {
            Ok(()) => Some(own),
            Err(_) => self.read()?,
        };
        if self.seen.is_some_and(|seen| seen != own) { Err(Error::Replaced) } else { outcome }
    }

    /// The commands by which an agent replaces the owner that was last seen, or stays the owner.
    fn succession(&self, agent: Agent) -> String {
        let element = |agent: Agent| format!("element {INET} {TABLE} {SET} {{ {:#010x} }}\n", agent.0);
        let seen = match self.seen {
            Some(seen) => format!("delete {}", element(seen)),
            // The set has room for one element, so another agent's blocks ours.
            None => format!(
                "add table {INET} {TABLE} {{ comment \"which agent keeps the tables {0}\"; }}\n\
                 add set {INET} {TABLE} {SET} {{ type mark; size 1; comment \"the port of its netlink socket\"; }}\n",
                super::ruleset::TABLE
            ),
        };
        format!("{seen}add {}", element(agent))
    }

    /// Reads the owner from the kernel.
    fn read(&mut self) -> Result<Option<Agent>, Error> {
        let name = |text: &str| [text.as_bytes(), b"\0"].concat();
        let attributes = [(LIST.0, &*name(TABLE)), (LIST.1, &*name(SET))];
        let mut request = nftables_request(GET_ELEMENTS, FAMILY, &attributes);
        let mut header = NetlinkBuffer::new(&mut request);
        header.set_flags(header.flags() | NLM_F_DUMP);
        let mut found = None;
        match self.netlink.exchange(request, |answer| found = found.or(element(answer.payload()))) {
            Ok(()) => Ok(found),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::Generation(error)),
        }
    }
}

/// The first element in a message with elements.
fn element(payload: &[u8]) -> Option<Agent> {
    let elements = attribute(payload, NFGENMSG, LIST.2)?;
    let first = NlasIterator::new(&*elements).next()?.ok()?.value().to_vec();
    let key = attribute(&attribute(&first, 0, ELEMENT.0)?, 0, ELEMENT.1)?;
    // A mark is in host byte order.
    Some(Agent(u32::from_ne_bytes(*key.first_chunk()?)))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn an_agent_lives_as_long_as_its_socket_is_open() {
        let (one, other) = (Sign::make().unwrap(), Sign::make().unwrap());
        assert_ne!(one.agent, other.agent);
        assert!(one.agent.is_alive() && other.agent.is_alive());
        let gone = one.agent;
        drop(one);
        assert!(is_gone(gone) && other.agent.is_alive());
    }

    fn open() -> Owner {
        Owner::open(Ports::from_first(10_265)).unwrap()
    }

    /// Runs a test on a thread of its own, in a network namespace that ends with it.
    fn in_namespace(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs CAP_SYS_ADMIN");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    /// Waits until an agent's socket is closed: processes that other threads start inherit it for a moment.
    fn is_gone(agent: Agent) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        while agent.is_alive() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        !agent.is_alive()
    }

    fn end(owner: &Owner) {
        owner.tenure.end();
        assert!(owner.own.is_none_or(is_gone));
    }

    fn tables() -> String {
        String::from_utf8(nft::run(&["list", "tables"], "").unwrap()).unwrap()
    }

    #[test]
    fn a_transaction_that_comes_late_has_no_effect() {
        in_namespace(|| {
            let (mut old, mut new) = (open(), open());
            assert!(old.look().unwrap());
            old.execute("add table inet first\n").unwrap();
            // So that nothing waits for it.
            end(&old);
            assert!(new.look().unwrap());
            assert!(matches!(old.execute("add table inet late\n"), Err(Error::Replaced)));
            new.execute("add table inet second\n").unwrap();
            assert!(!old.look().unwrap() && old.tenure.is_replaced() && !old.is_current());
            assert!(matches!(old.execute("add table inet late\n"), Err(Error::Replaced)));
            let tables = tables();
            assert!(tables.contains("first") && tables.contains("second") && !tables.contains("late"));
            end(&new);
            assert!(old.look().unwrap() && !old.tenure.is_replaced());
            assert!(matches!(new.execute("add table inet late\n"), Err(Error::Replaced)));
        });
    }

    #[test]
    fn where_none_is_there_two_cannot_become_it() {
        in_namespace(|| {
            let (mut one, mut other) = (open(), open());
            assert!(one.look().unwrap());
            // It last looked before.
            other.seen = None;
            assert!(nft::execute(&other.succession(Agent::any())).is_err());
            nft::execute("flush ruleset\n").unwrap();
            assert!(one.execute("add table inet x\n").is_err(), "it is found out");
            one.execute("add table inet x\n").unwrap();
            assert!(one.look().unwrap() && one.read().unwrap() == one.own);
            other.seen = one.own;
        });
    }

    #[test]
    fn of_two_that_begin_at_once_the_second_looks_again() {
        in_namespace(|| {
            let (mut one, mut other) = (open(), open());
            assert!(one.look().unwrap());
            // It last looked before.
            assert!(matches!(other.take(true), Err(Error::Replaced)));
            // So that nothing waits for it.
            end(&one);
            assert!(other.look().unwrap() && !one.look().unwrap());
        });
    }

    #[test]
    fn who_has_been_replaced_lets_go_and_nobody_else() {
        let tenure = Tenure::default();
        let sign = Sign::make().unwrap();
        let agent = sign.agent;
        tenure.state().sign = Some(sign);
        tenure.release();
        assert!(agent.is_alive() && !tenure.is_replaced());
        tenure.state().is_replaced = true;
        assert!(agent.is_alive(), "its listeners may be open");
        tenure.release();
        assert!(is_gone(agent));
    }
}
