//! Socket mode's life in an agent: its programs are attached in place of an earlier agent's, kept in line with
//! the table, and removed if nobody would look after them.
//!
//! `config`: what is wanted. `attach`: how it begins. `handing_over`: how it passes from one agent to the next.
//! `shortage`: how often an attempt is repeated. `leftovers`: removing another agent's programs. `namespaces`:
//! whose sockets are translated. `pods`: whose are not, by annotations; `detector`: and by addresses; `news`:
//! how `namespaces` learns of both. `sweep`: ending sockets whose endpoint is gone. `view`: what other threads
//! may see. `place`: where all of this is done.

mod attach;
mod config;
mod detector;
mod handing_over;
mod leftovers;
mod namespaces;
mod news;
mod place;
mod pods;
mod shortage;
mod sweep;
#[cfg(test)]
pub(crate) mod tests;
mod view;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice_model::{Change, Frontend};
use sluice_table::{ServicePort, Writer};
use tracing::{debug, info, warn};

pub(crate) use self::attach::warn_of_left;
use self::attach::{Attached, Attempt, Hindrance, NotAttached};
pub use self::config::{AtSocketConfig, AtSocketWish};
pub(crate) use self::detector::Detector;
use self::handing_over::{Heir, Holder};
use self::leftovers::Leftovers;
use self::place::{Node, Place};
pub(crate) use self::pods::Pods;
use self::shortage::{Fate, Shortage};
pub(crate) use self::view::{Looks, View};

/// How long to wait before checking again whether an earlier agent still holds socket mode.
const ATTACH_RETRY: Duration = Duration::from_secs(1);

/// How long an update from one agent to another may take. An agent that has been replaced and has held socket
/// mode for longer hangs, although its process has not ended.
const HAND_OVER: Duration = Duration::from_secs(60);

/// How often to check that the programs are still attached.
const LOOK: Duration = Duration::from_secs(5);

/// Socket mode, on or off. Belongs to the proxy's thread.
pub(crate) struct SocketMode {
    place: Box<dyn Place>,
    /// What to attach, now or once another agent has let go.
    config: Option<AtSocketConfig>,
    attached: Option<Attached>,
    view: View,
    /// The node's addresses, if they are watched.
    interfaces: Vec<IpAddr>,
    /// When it was last checked whether programs can be attached, or still are.
    looked: Instant,
    /// Since when another agent holds what is to be attached, or when it was last taken away from that agent.
    waits: Option<Instant>,
    /// A series of attempts to attach that failed for want of something.
    shortage: Option<Shortage>,
    /// What an earlier agent has left and nobody looks after.
    leftovers: Option<Leftovers>,
    /// This agent's progress in getting socket mode from another agent.
    heir: Heir,
    /// Its progress in leaving socket mode to another agent.
    holder: Holder,
}

impl SocketMode {
    /// Attaches the programs if they are wanted, unless another agent holds them. They translate nothing until
    /// frontends are offered. If they are not wanted, removes what an earlier agent has pinned below
    /// `leftovers`.
    pub(crate) fn start(wish: AtSocketWish, leftovers: Option<PathBuf>, writer: &mut Writer) -> Self {
        Self::start_at(wish, leftovers, writer, Box::new(Node))
    }

    fn start_at(
        wish: AtSocketWish,
        leftovers: Option<PathBuf>,
        writer: &mut Writer,
        mut place: Box<dyn Place>,
    ) -> Self {
        let (view, interfaces): (View, _) = Default::default();
        let config = match wish {
            AtSocketWish::None => None,
            AtSocketWish::Wanted(config) => Some(config),
            AtSocketWish::Lacking(what) => {
                info!("all connections are relayed: {what}");
                view.set_reason(&what);
                None
            }
        };
        let leftovers = match config {
            Some(_) => None,
            None => leftovers.and_then(|pins| Leftovers::remove(pins, &mut *place, &view)),
        };
        let (attached, waits, shortage, looked) = (None, None, None, Instant::now());
        let (heir, holder) = Default::default();
        let mut mode = Self {
            place,
            config,
            attached,
            view,
            interfaces,
            looked,
            waits,
            shortage,
            leftovers,
            heir,
            holder,
        };
        // Until the table is complete, only the earlier agent's programs can serve their clients.
        if let Some(config) = &mode.config
            && mode.place.would_begin_anew(config)
        {
            let reason =
                "what an earlier agent has attached goes on until all is known: its maps have another size";
            info!("{reason}");
            mode.view.set_reason(reason);
            mode.heir = Heir::Ready;
        } else if let Attempt::Busy(_) = mode.attach(looked, writer) {
            info!(
                "another agent's programs decide at sockets, by what that one knows, until it lets go of them"
            );
            // It has not been asked to let go yet: this agent is not ready to serve.
            (mode.waits, mode.heir) = (None, Heir::Ready);
        }
        mode
    }

    /// What other threads may see.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// Passes on that these service ports have changed.
    pub(crate) fn change(&mut self, ports: &[Arc<ServicePort>]) {
        if let Some(Attached { sockets, sweeper, .. }) = &mut self.attached {
            sockets.change(ports);
            sweeper.changed(ports);
        }
    }

    /// Passes on the Node's podCIDRs.
    pub(crate) fn set_node_pod_cidrs(&self, cidrs: &[IpNet]) {
        if let Some(detector) = self.detector() {
            detector.set_node(cidrs);
        }
    }

    /// Takes in changes of pods and namespaces; ignores others.
    pub(crate) fn note(&self, change: &Change) {
        if let Some(pods) = self.pods() {
            pods.note(change);
        }
    }

    /// Makes what was noted take effect. By the first call, all initial objects have been noted, including the
    /// Node.
    pub(crate) fn settle(&self) {
        if let Some(pods) = self.pods() {
            pods.settle();
        }
        if let Some(detector) = self.detector().filter(|detector| detector.waits_for_node()) {
            detector.set_node(&[]);
        }
    }

    fn detector(&self) -> Option<&Detector> {
        self.config.as_ref()?.detector.as_deref()
    }

    fn pods(&self) -> Option<&Pods> {
        self.config.as_ref()?.pods.as_deref()
    }

    /// Stops translating connections to these frontends; none is translated any more when this returns.
    pub(crate) fn withdraw(&mut self, frontends: &[Frontend]) {
        if let Some(Attached { sockets, .. }) = &mut self.attached {
            sockets.withdraw(frontends);
        }
    }

    /// Removes these frontends from what an earlier agent has left, whoever holds it. Returns whether there
    /// were any. For frontends that were not offered.
    pub(crate) fn forget(&mut self, frontends: &[Frontend]) -> bool {
        let config = self.config.as_ref().map(|config| &*config.pins);
        let Some(pins) = config.or(self.leftovers.as_ref().map(Leftovers::pins)) else { return false };
        match self.place.forget(pins, frontends) {
            Ok(forgotten) => forgotten > 0,
            Err(error) => {
                debug!("what an earlier agent decides at sockets may lead connections elsewhere: {error}");
                false
            }
        }
    }

    /// Translates connections to these frontends from now on; with `is_all`, to no others. If `serves` says
    /// that there is a relay (see [`SocketMode::keep`]), the programs learn that first: without a relay, they
    /// use endpoints in doubt and take all namespaces for pods'.
    pub(crate) fn offer(&mut self, frontends: &[Frontend], is_all: bool, serves: bool) {
        if let Some(Attached { sockets, .. }) = &mut self.attached {
            if serves {
                sockets.beat();
            }
            sockets.offer(frontends);
            if is_all {
                sockets.forget_others();
            }
        }
    }

    /// Wakes the sweeper, because UDP endpoints or frontends are gone.
    pub(crate) fn wake_sweeper(&self) {
        if let Some(Attached { sweeper, .. }) = &self.attached {
            sweeper.wake();
        }
    }

    /// Sets the addresses of the node's interfaces.
    pub(crate) fn set_interfaces(&mut self, addresses: Vec<IpAddr>) {
        if let Some(Attached { sockets, .. }) = &mut self.attached {
            sockets.set_interfaces(&addresses);
        }
        self.interfaces = addresses;
    }

    /// Publishes how much the maps hold.
    pub(crate) fn report(&self) {
        if let Some(Attached { sockets, .. }) = &self.attached {
            self.view.set_stats(sockets.stats());
        }
    }

    /// Hands over to the agent that has replaced this one. The programs stay attached, and this agent keeps
    /// them in line with changes until the other asks for them, because nobody else would. To be called as long
    /// as this agent is replaced.
    pub(crate) fn hand_over(&mut self, now: Instant) {
        let pins = self.config.as_ref().map(|config| config.pins.clone());
        let is_asked_for = pins.as_ref().is_some_and(|pins| self.place.is_asked_for(pins));
        let is_to_go = self.holder.is_to_let_go(now, self.attached.is_some(), is_asked_for);
        if is_to_go {
            // If somebody has removed the programs instead, no other agent takes care of their sockets.
            self.notice_loss();
            (self.attached, self.waits, self.shortage) = (None, None, None);
            // They belong to the other agent now.
            (self.leftovers, self.heir) = (None, Heir::No);
            self.view.set_detached("another agent has taken over");
        }
        if let Some(pins) = pins.filter(|_| is_asked_for && self.attached.is_none()) {
            self.place.let_go(&pins);
        }
    }

    /// Keeps what this agent still holds, because the other agent is gone.
    pub(crate) fn take_back(&mut self) {
        self.holder = Holder::default();
        if let (Some(_), Some(config)) = (&self.attached, &self.config) {
            self.place.let_go(&config.pins);
        }
    }

    /// Whether socket mode is about to pass from one agent to another.
    pub(crate) fn is_handing_over(&self) -> bool {
        self.heir == Heir::Asked || self.attached.is_some() && self.holder.is_waiting()
    }

    /// Does the periodic work, several times a second: looks after what is attached. `serves` says whether
    /// there is a relay that takes connections left to it.
    pub(crate) fn keep(&mut self, now: Instant, serves: bool) {
        if let Some(Attached { sockets, .. }) = &mut self.attached {
            sockets.keep();
            if serves {
                sockets.beat();
            }
            if now >= self.looked + LOOK {
                self.looked = now;
                self.notice_loss();
            }
        }
    }

    /// Takes over from an agent that has ended, or retries a failed attempt to attach, if that is due. To be
    /// called while all frontends in the table are served and none is about to be withdrawn: these are offered.
    /// `serves` as for [`SocketMode::keep`].
    pub(crate) fn take_over(&mut self, now: Instant, writer: &mut Writer, serves: bool) {
        if self.leftovers.as_mut().is_some_and(|left| left.keep(now, &mut *self.place, &self.view)) {
            self.leftovers = None;
        }
        let delay = self.shortage.as_ref().map_or(ATTACH_RETRY, Shortage::delay);
        let is_asked_for =
            || self.config.as_ref().is_some_and(|config| self.place.is_asked_for(&config.pins));
        if self.attached.is_some() || !(now >= self.looked + delay || self.heir.is_due(is_asked_for)) {
            return;
        }
        self.looked = now;
        let was_short = self.shortage.is_some();
        let mut attempt = self.attach(now, writer);
        if let Attempt::Busy(_) = &attempt
            && self.waits.is_some_and(|since| now >= since + HAND_OVER)
        {
            attempt = self.take_away(now, writer);
        }
        self.heir = match (&attempt, &self.config) {
            (Attempt::Busy(_), Some(config)) => Heir::ask(&mut *self.place, &config.pins),
            _ => Heir::No,
        };
        if let Attempt::Done = attempt {
            let routes = writer.table().routes();
            let frontends: Vec<Frontend> = routes.iter().map(|route| route.frontend()).collect();
            self.set_interfaces(self.interfaces.clone());
            self.offer(&frontends, true, serves);
            self.wake_sweeper();
            let why =
                if was_short { "that works now" } else { "this agent knows all, and no other one decides" };
            info!("connections are decided at their sockets, as {why}");
        }
    }

    fn attach(&mut self, now: Instant, writer: &mut Writer) -> Attempt {
        let Some(config) = &self.config else { return Attempt::None };
        match self.place.attach(config, writer.table()) {
            Ok((attached, looks)) => {
                (self.shortage, self.waits, self.leftovers) = (None, None, None);
                self.view.set_attached(looks);
                self.attached = Some(attached);
                writer.follow_changes();
                Attempt::Done
            }
            Err(NotAttached { hindrance: Hindrance::Busy, reason }) => {
                if self.shortage.take().is_some() || self.waits.is_none() {
                    self.waits = Some(now);
                    self.view.set_reason(&format!("another agent's programs decide so far: {reason}"));
                }
                Attempt::Busy(reason)
            }
            Err(NotAttached { hindrance: Hindrance::Passing, reason }) => {
                self.fall_short(now, &reason);
                Attempt::None
            }
            Err(NotAttached { hindrance: Hindrance::Lasting, reason }) => {
                let pins = config.pins.clone();
                self.say_off(&reason);
                self.leftovers = Leftovers::remove(pins, &mut *self.place, &self.view);
                (self.config, self.shortage) = (None, None);
                Attempt::None
            }
        }
    }

    /// Removes the programs of an agent that was replaced but does not let go: they would go on deciding by
    /// what that agent last knew. This agent has the rules, and takes new connections.
    fn take_away(&mut self, now: Instant, writer: &mut Writer) -> Attempt {
        let Some(config) = &self.config else { return Attempt::None };
        // If that does not help, it is tried again after the same time.
        self.waits = Some(now);
        let seconds = HAND_OVER.as_secs();
        warn!(
            "another agent has held what decides at sockets for {seconds} s, although it is replaced: it hangs, and its \
             programs are removed"
        );
        match self.place.remove_held(&config.pins) {
            Ok(removed) => warn_of_left(removed.left.as_deref()),
            Err(error) => {
                let reason = format!(
                    "an agent that hangs decides at sockets, by what it knew, and its programs cannot be removed: {error}"
                );
                warn!("{reason}; end it, and run sluice cleanup");
                self.view.set_reason(&reason);
                return Attempt::Busy(reason);
            }
        }
        let attempt = self.attach(now, writer);
        if let Attempt::Busy(reason) = &attempt {
            self.say_off(reason);
        }
        attempt
    }

    /// Handles an attempt that failed for want of something that may be available soon. What an earlier agent
    /// has left still serves clients: it is removed only once it is out of date.
    fn fall_short(&mut self, now: Instant, reason: &str) {
        let is_first = self.shortage.is_none();
        let fate = self.shortage.get_or_insert_with(|| Shortage::new(now)).failed(now);
        match fate {
            Fate::Stays => {
                let reason = format!(
                    "tried again, and what an earlier agent may have left goes on until then: {reason}"
                );
                if is_first {
                    warn!("connections are not decided at their sockets by this agent so far: {reason}");
                }
                self.view.set_reason(&reason);
            }
            Fate::Goes { is_news } => {
                let left = self.remove_leftovers();
                let reason =
                    format!("tried again every {} minutes: {reason}{left}", shortage::SLOW.as_secs() / 60);
                match is_news {
                    true => self.say_off(&reason),
                    false => self.view.set_reason(&reason),
                }
            }
        }
    }

    /// Removes what an earlier agent has left. Returns what to append to the logged reason: empty unless the
    /// removal fails.
    fn remove_leftovers(&mut self) -> String {
        let Some(config) = &self.config else { return String::new() };
        match self.place.remove(&config.pins) {
            Ok(removed) => {
                warn_of_left(removed.left.as_deref());
                String::new()
            }
            Err(left) => format!("; what is attached cannot be removed: {left}"),
        }
    }

    fn say_off(&self, reason: &str) {
        warn!("no connection is decided at its socket, all are relayed: {reason}");
        self.view.set_reason(reason);
    }

    /// Detaches everything if a program is missing. Whoever removed it wants none, or does not know what it
    /// did: the remaining programs would translate some connections and forget others. They are not put back,
    /// because an agent that is about to replace this one may have removed it.
    fn notice_loss(&mut self) {
        let Some(Attached { links, .. }) = &self.attached else { return };
        let missing: Vec<&str> = links.missing().collect();
        if missing.is_empty() {
            return;
        }
        // Some may be attached although their pins are gone.
        links.detach();
        let reason =
            format!("somebody has taken {} away; restart the agent to have it back", missing.join(", "));
        warn!("no connection is decided at its socket any more, all are relayed: {reason}");
        let census = self.attached.take().map(|attached| attached.census);
        self.view.set_detached(&reason);
        // If another agent holds what is left, it belongs to that agent now.
        match self.config.take().map(|config| self.place.remove(&config.pins)) {
            Some(Err(error)) => warn!("what is left of it cannot be removed: {error}"),
            Some(Ok(removed)) => warn_of_left(removed.left.as_deref()),
            None => {}
        }
        // If the maps' pins were gone, too, only this agent still knows whose sockets were connected.
        let ended = census.map(|census| census.end_datagram_sockets(|_| true));
        let left = ended
            .and_then(|ended| ended.map_or_else(|error| Some(error.to_string()), |ended| ended.trouble()));
        warn_of_left(left.as_deref());
    }
}
