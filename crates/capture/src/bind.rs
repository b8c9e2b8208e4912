//! Bind mode: a listening socket on each frontend's own address and port.
//!
//! For loopback addresses, a laptop, the demo, or a load balancer on addresses that the machine has anyway. A
//! frontend that relays nobody has no socket, so that the kernel refuses its connections: a TCP reset, an ICMP
//! port unreachable. (Connections that the rules would drop are refused as well: only the kernel's rules can
//! drop silently.)
//!
//! A frontend that cannot be bound is reported and retried. It does not affect the others.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sluice_model::{Frontend, mend_of_shortage};
use tracing::{debug, info, warn};

use crate::{Capture, Change};

/// Pause before the first retry; doubles up to [`RETRY_MAX`]. The cause is usually another process, or an
/// address that is about to be added, and somebody is waiting for it.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(8);

/// The maximum number of frontends per round of retries, so that thousands of failures do not delay changes.
const RETRIES_AT_ONCE: usize = 256;

/// The maximum number of failures logged individually at once. With an apiserver as the source, every address of
/// the cluster may be one that this machine does not have.
const COMPLAINTS_AT_ONCE: usize = 20;

/// Opens and closes the sockets.
pub trait Listeners {
    /// Opens sockets for a frontend and serves it.
    ///
    /// # Errors
    /// The error of bind(2) or listen(2).
    fn open(&self, frontend: Frontend) -> io::Result<()>;

    /// Closes the frontend's sockets. Once it returns, the kernel refuses new connections.
    fn close(&self, frontend: Frontend);
}

/// The frontends that cannot be listened on, with reasons, for others to read. Clones share the data.
#[derive(Debug, Clone, Default)]
pub struct Failures(Arc<Mutex<BTreeMap<Frontend, Option<i32>>>>);

impl Failures {
    /// The number of failures.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// All failures: the reason and how to fix it, as text.
    pub fn all(&self) -> BTreeMap<Frontend, String> {
        // Thousands may have the same few reasons. The lock is not held while they are formatted.
        let failures = self.lock().clone();
        failures.into_iter().map(|(frontend, reason)| (frontend, said(reason))).collect()
    }

    fn set(&self, frontend: Frontend, state: Option<&State>) {
        match state {
            Some(State::Failed { reason, .. }) => self.lock().insert(frontend, *reason),
            Some(State::Open) | None => self.lock().remove(&frontend),
        };
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Frontend, Option<i32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bind mode.
#[derive(Debug)]
pub struct Bind<L> {
    listeners: L,
    frontends: BTreeMap<Frontend, State>,
    /// The frontends that have failed.
    failures: Failures,
    /// The number of new failures since the last [`Bind::sum_up`].
    complaints: usize,
}

/// A frontend to relay.
#[derive(Debug)]
enum State {
    Open,
    Failed { reason: Option<i32>, retry_at: Instant, pause: Duration },
}

impl<L: Listeners> Bind<L> {
    /// A bind mode with no frontends; `failures` is kept up to date.
    pub fn new(listeners: L, failures: Failures) -> Self {
        Self { listeners, frontends: BTreeMap::new(), failures, complaints: 0 }
    }

    /// Stores a frontend's new state, or removes it.
    fn note(&mut self, frontend: Frontend, state: Option<State>) -> Option<State> {
        self.failures.set(frontend, state.as_ref());
        match state {
            Some(state) => self.frontends.insert(frontend, state),
            None => self.frontends.remove(&frontend),
        }
    }

    /// Logs the number of failures that were not logged individually.
    fn sum_up(&mut self) {
        let complaints = std::mem::take(&mut self.complaints);
        if let Some(unsaid) = complaints.checked_sub(COMPLAINTS_AT_ONCE).filter(|unsaid| *unsaid > 0) {
            warn!("{unsaid} more frontends cannot be listened on; -v names them");
        }
    }

    fn close(&mut self, frontend: Frontend) {
        if let Some(State::Open) = self.note(frontend, None) {
            self.listeners.close(frontend);
            debug!(%frontend, "closed");
        }
    }

    fn open(&mut self, frontend: Frontend, now: Instant) {
        let failed_before = match self.frontends.get(&frontend) {
            Some(State::Open) => return,
            Some(State::Failed { reason, pause, .. }) => Some((*reason, *pause)),
            None => None,
        };
        let state = match self.listeners.open(frontend) {
            Ok(()) => {
                match failed_before {
                    Some(_) => info!(%frontend, "can be bound now and is served"),
                    None => debug!(%frontend, "opened"),
                }
                State::Open
            }
            Err(error) => {
                let reason = error.raw_os_error();
                if failed_before.is_none_or(|(before, _)| before != reason) {
                    self.complaints += 1;
                    if self.complaints <= COMPLAINTS_AT_ONCE {
                        warn!("cannot listen on {frontend}: {error}: {}", mend(reason));
                    } else {
                        debug!("cannot listen on {frontend}: {error}: {}", mend(reason));
                    }
                }
                let pause = failed_before.map_or(RETRY_MIN, |(_, pause)| (pause * 2).min(RETRY_MAX));
                State::Failed { reason, retry_at: now + pause, pause }
            }
        };
        self.note(frontend, Some(state));
    }
}

impl<L: Listeners> Capture for Bind<L> {
    fn change(&mut self, change: Change<'_>, now: Instant) {
        for state in change.withdraw {
            self.close(state.frontend);
        }
        for state in change.offer {
            if state.is_relayed() {
                self.open(state.frontend, now);
            } else {
                self.close(state.frontend);
            }
        }
        self.sum_up();
    }

    fn keep(&mut self, now: Instant) {
        let due = |(frontend, state): (&Frontend, &State)| match state {
            State::Failed { retry_at, .. } if *retry_at <= now => Some((*retry_at, *frontend)),
            _ => None,
        };
        let mut due: Vec<(Instant, Frontend)> = self.frontends.iter().filter_map(due).collect();
        // Those that have waited longest come first.
        due.sort_unstable();
        for (_, frontend) in due.into_iter().take(RETRIES_AT_ONCE) {
            self.open(frontend, now);
        }
        self.sum_up();
    }
}

/// An error as text, with advice.
fn said(reason: Option<i32>) -> String {
    match reason {
        Some(errno) => format!("{}: {}", io::Error::from_raw_os_error(errno), mend(reason)),
        None => format!("the log says why: {}", mend(reason)),
    }
}

/// Advice on an error.
fn mend(reason: Option<i32>) -> &'static str {
    match reason.map(Errno::from_raw_os_error) {
        Some(Errno::ADDRINUSE) => "another process listens there; stop it or give the Service another port",
        Some(Errno::ACCESS) => {
            "the port is privileged; run with CAP_NET_BIND_SERVICE, lower \
             net.ipv4.ip_unprivileged_port_start, or give the Service a port from 1024 on"
        }
        Some(Errno::ADDRNOTAVAIL) => {
            "the address is not one of this machine's; add it to an interface (ip address add), or use one \
             of 127.0.0.0/8"
        }
        _ => reason
            .map(io::Error::from_raw_os_error)
            .and_then(|error| mend_of_shortage(&error))
            .unwrap_or("it is tried again"),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use sluice_model::{FrontendKind, ObjectName, Protocol, ServicePortName};
    use sluice_table::{ClusterAddressChange, FrontendState, Reason, Verdict};

    use super::*;

    /// Listeners that act as configured, and record the calls.
    #[derive(Debug, Default)]
    struct Fake {
        fails: Option<i32>,
        calls: Vec<String>,
    }

    impl Listeners for Rc<RefCell<Fake>> {
        fn open(&self, frontend: Frontend) -> io::Result<()> {
            let mut fake = self.borrow_mut();
            fake.calls.push(format!("open {frontend}"));
            fake.fails.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
        }

        fn close(&self, frontend: Frontend) {
            self.borrow_mut().calls.push(format!("close {frontend}"));
        }
    }

    fn state(verdict: Verdict) -> FrontendState {
        let frontend = Frontend::new([127, 0, 0, 1].into(), 8080, Protocol::Tcp);
        let service = ObjectName::new("default", "web");
        let port = ServicePortName { service, port: "".into(), protocol: Protocol::Tcp };
        FrontendState {
            frontend,
            kind: FrontendKind::ClusterIp,
            port,
            inside: verdict,
            outside: verdict,
            allowed_sources: None,
        }
    }

    fn change(
        bind: &mut Bind<Rc<RefCell<Fake>>>,
        withdraw: &[FrontendState],
        offer: &[FrontendState],
        now: Instant,
    ) {
        let cluster_addresses = &ClusterAddressChange::default();
        bind.change(Change { withdraw, offer, cluster_addresses }, now);
    }

    fn bind() -> (Bind<Rc<RefCell<Fake>>>, Rc<RefCell<Fake>>) {
        let fake = Rc::<RefCell<Fake>>::default();
        (Bind::new(Rc::clone(&fake), Failures::default()), fake)
    }

    #[test]
    fn sockets_exist_only_while_somebody_is_relayed() {
        let (mut bind, fake) = bind();
        let now = Instant::now();
        let refused = state(Verdict::Refuse(Reason::NoEndpoints));
        change(&mut bind, &[], std::slice::from_ref(&refused), now);
        change(&mut bind, &[], &[state(Verdict::Relay)], now);
        change(&mut bind, &[], &[state(Verdict::Relay)], now);
        change(&mut bind, &[], std::slice::from_ref(&refused), now);
        change(&mut bind, &[refused], &[], Instant::now());
        assert_eq!(fake.borrow().calls, ["open 127.0.0.1:8080/TCP", "close 127.0.0.1:8080/TCP"]);
    }

    #[test]
    fn what_cannot_be_bound_is_tried_again_with_growing_pauses() {
        let (mut bind, fake) = bind();
        let start = Instant::now();
        fake.borrow_mut().fails = Some(Errno::ADDRINUSE.raw_os_error());
        change(&mut bind, &[], &[state(Verdict::Relay)], start);
        for second in 1..=31 {
            bind.keep(start + Duration::from_secs(second));
        }
        assert_eq!(fake.borrow().calls.len(), 1 + 6, "after 1, 3, 7, 15, 23 and 31 seconds");
        assert_eq!(bind.failures.count(), 1);
        let said = bind.failures.all().into_values().next().unwrap_or_default();
        assert!(said.contains("in use") && said.contains("give the Service another port"), "{said}");

        fake.borrow_mut().fails = None;
        bind.keep(start + Duration::from_secs(60));
        bind.keep(start + Duration::from_secs(120));
        assert_eq!(fake.borrow().calls.len(), 1 + 6 + 1, "open: nothing left to retry");
        assert_eq!(bind.failures.count(), 0);
    }

    #[test]
    fn one_round_of_retries_is_bounded_and_everybody_gets_a_turn() {
        const FRONTENDS: u16 = 1_000;
        let (mut bind, fake) = bind();
        let start = Instant::now();
        fake.borrow_mut().fails = Some(Errno::ADDRNOTAVAIL.raw_os_error());
        let states: Vec<FrontendState> = (1..=FRONTENDS)
            .map(|port| FrontendState {
                frontend: Frontend::new([192, 0, 2, 1].into(), port, Protocol::Tcp),
                ..state(Verdict::Relay)
            })
            .collect();
        change(&mut bind, &[], &states, start);
        fake.borrow_mut().calls.clear();
        let mut tried = std::collections::BTreeSet::new();
        for second in 1..=4 {
            bind.keep(start + Duration::from_secs(second));
            let calls = std::mem::take(&mut fake.borrow_mut().calls);
            assert!(calls.len() <= RETRIES_AT_ONCE);
            tried.extend(calls);
        }
        assert_eq!(tried.len(), usize::from(FRONTENDS));
    }

    #[test]
    fn a_withdrawn_frontend_is_not_retried_and_nothing_is_closed_that_was_not_open() {
        let (mut bind, fake) = bind();
        let start = Instant::now();
        fake.borrow_mut().fails = Some(Errno::ACCESS.raw_os_error());
        change(&mut bind, &[], &[state(Verdict::Relay)], start);
        change(&mut bind, &[state(Verdict::Relay)], &[], Instant::now());
        bind.keep(start + RETRY_MAX);
        assert_eq!(fake.borrow().calls, ["open 127.0.0.1:8080/TCP"]);
        assert_eq!(bind.failures.count(), 0);
    }
}
