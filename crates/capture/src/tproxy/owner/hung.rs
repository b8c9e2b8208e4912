//! Waits for a predecessor that does not close its listeners, and finally leaves it alone with them.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::super::Ports;
use super::super::shared_listeners::{self, Sharing};
use super::{Agent, Owner};

/// How long a predecessor may take to close its listeners. Until then both serve, each by its own state.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often that is checked.
const LOOK: Duration = Duration::from_millis(10);

/// How long this agent may take to open listeners at other ports, beside a predecessor that hangs.
const OPENING: Duration = Duration::from_secs(2);

/// How often to check whether that predecessor still hangs.
const HANGS: Duration = Duration::from_secs(2);

/// A predecessor that hangs.
#[derive(Debug)]
pub(super) struct Hung {
    agent: Option<Agent>,
    /// The ports at which both have listeners.
    ports: Ports,
    due: Instant,
}

impl Owner {
    /// Waits until nobody else has listeners at this agent's ports. Leaves those ports to a predecessor that hangs.
    pub(super) fn wait_for(&mut self, predecessor: Option<Agent>) {
        if predecessor.is_some() {
            info!("this agent takes the place of another one, which serves");
        }
        let start = Instant::now();
        let (is_alive, sharing) = loop {
            let is_alive = predecessor.is_some_and(Agent::is_alive);
            let is_over = start.elapsed() >= PATIENCE;
            let sharing = (!is_alive || is_over).then(|| shared_listeners::look(self.ports));
            match sharing {
                Some(Ok(sharing)) if !is_alive && sharing.others.is_empty() => return,
                // No other agent is known, and none can be found.
                Some(Err(error)) if !is_alive => return debug!(%error, "listeners of others are not known"),
                Some(sharing) if is_over => break (is_alive, sharing),
                _ => {}
            }
            std::thread::sleep(LOOK);
        };
        let sharing = sharing.unwrap_or_else(|error| {
            debug!(%error, "listeners of others are not known");
            // Whether it has any is unknown.
            Sharing { own: 1, others: Vec::new() }
        });
        if is_alive && sharing.own == 0 {
            warn!("the agent whose place this one takes goes on taking connections; does it hang?");
            return;
        }
        self.part(predecessor, &sharing);
    }

    /// Makes this agent open listeners at ports that the hanging one does not use.
    fn part(&mut self, predecessor: Option<Agent>, sharing: &Sharing) {
        let hung = self.ports;
        let waiting = match shared_listeners::destroy(&sharing.others) {
            Ok(destroyed) => format!("{destroyed} of its TCP listeners are destroyed"),
            Err(error) => format!(
                "its TCP listeners could not be destroyed, so clients that wait there go on waiting ({error})"
            ),
        };
        let trouble = match self.move_listeners() {
            Ok(()) => format!(
                "another agent on this node hangs and keeps its listeners at the ports {hung}; kill its process. This agent \
                 takes new connections at the ports {} instead",
                self.ports
            ),
            Err(reason) => format!(
                "another agent on this node hangs and keeps its listeners at the ports {hung}: some new connections and \
                 datagrams to Services are lost until its process is killed ({reason})"
            ),
        };
        warn!("{trouble}; {waiting}; `ss -lnup sport = :{}` on the node shows the process", hung.outside);
        self.tenure.state().trouble = Some(trouble);
        self.hung = Some(Hung { agent: predecessor, ports: hung, due: Instant::now() + HANGS });
    }

    fn move_listeners(&mut self) -> Result<(), String> {
        // If the kernel does not tell, the next ports are tried.
        let free = shared_listeners::free_ports(self.ports).unwrap_or_else(|_| self.ports.beyond(1));
        let free = free.ok_or("no ports behind these are free; choose others with --tproxy-port")?;
        {
            let mut state = self.tenure.state();
            (state.wanted, state.are_open) = (Some(free), None);
        }
        let start = Instant::now();
        let are_open = loop {
            let are_open = self.tenure.state().are_open;
            if are_open.is_some() || start.elapsed() >= OPENING {
                break are_open;
            }
            std::thread::sleep(LOOK);
        };
        self.tenure.state().wanted = None;
        if are_open != Some(true) {
            return Err(format!("listeners cannot be opened at the ports {free}"));
        }
        self.ports = free;
        Ok(())
    }

    /// Checks whether a predecessor that hung still does.
    pub(super) fn look_for_hung(&mut self) {
        let now = Instant::now();
        let Some(hung) = self.hung.as_mut().filter(|hung| now >= hung.due) else { return };
        hung.due = now + HANGS;
        let is_there = hung.agent.is_some_and(Agent::is_alive)
            || shared_listeners::look(hung.ports).is_ok_and(|sharing| !sharing.others.is_empty());
        if !is_there {
            info!("the agent that hung has let go of its listeners at the ports {}", hung.ports);
            self.hung = None;
            self.tenure.state().trouble = None;
        }
    }
}
