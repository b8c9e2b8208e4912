//! Ends connected UDP sockets whose endpoint or Service is gone, because nobody would ever answer them. Under
//! kube-proxy, removing their conntrack entries does the same.
//!
//! The sweep runs on a thread of its own. It looks at all translated sockets, and at all processes if it has to
//! end a socket. A change of endpoints wakes it; changes during a look lead to one more look, after a pause.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluice_model::Protocol;
use sluice_socket::{Census, Endable, EndedSockets, Translated};
use sluice_table::{FrontendKey, Reader, ServicePort, Table};
use tracing::{info, warn};

/// The shortest pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// A pause is this many times as long as the look before it, up to [`LONGEST_PAUSE`]: looks of half a second or
/// less take at most a twentieth of a processor.
const REST: u32 = 20;

/// The longest pause. A look takes long if other tasks use the processors. If it takes long because it has much
/// to do, its share of a processor is larger: a third for a look of five seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long after a look for which it was woken one more follows. A task may be preempted after a program has
/// chosen its endpoint and before its socket is connected to it: the first look takes such a socket for one
/// without an endpoint.
const AGAIN: Duration = Duration::from_secs(5);

/// The longest wait before a retry. The first is a pause, and each later one is twice as long.
const LONGEST_RETRY: Duration = Duration::from_secs(64);

/// How long pods are relayed, at the least, after sockets of pods were left that cannot be ended. The time
/// doubles with each repetition, up to [`LONGEST_ABSENCE`], so that a client that makes such sockets and closes
/// them again cannot make all pods switch to and fro.
const ABSENCE: Duration = Duration::from_secs(60);
const LONGEST_ABSENCE: Duration = Duration::from_secs(3600);

/// Counters of the sweep.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    ended: AtomicU64,
    failed: AtomicU64,
}

impl Swept {
    /// Sockets that were ended.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Looks that failed, or that left a socket that should have been ended.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// The sweep's thread, which runs as long as this is held.
#[derive(Debug)]
pub(crate) struct Sweeper {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    swept: Arc<Swept>,
}

impl Sweeper {
    /// Starts the thread, which does nothing until it is woken.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub(crate) fn start(census: Census, table: &Table) -> io::Result<Self> {
        let endable = Endable::probe();
        census.set_endable(endable);
        if !endable.of_pods {
            info!(
                "pods' UDP sockets that are connected are relayed, as they could not be ended: it takes CAP_SYS_ADMIN, \
                 and a kernel with CONFIG_INET_DIAG_DESTROY"
            );
        }
        let swept = Arc::<Swept>::default();
        let (wake, woken) = sync_channel(1);
        let counted = Arc::clone(&swept);
        let look = InKernel { census, endable, table: table.reader() };
        let builder = std::thread::Builder::new().name("socket-sweep".to_owned());
        let thread = builder.spawn(move || follow(&woken, PACE, &counted, look))?;
        Ok(Self { wake: Some(wake), thread: Some(thread), swept })
    }

    /// Wakes the thread if one of these changed service ports has lost a UDP endpoint.
    pub(crate) fn changed(&self, ports: &[Arc<ServicePort>]) {
        let has_lost = |port: &Arc<ServicePort>| port.name().protocol == Protocol::Udp && port.take_lost();
        // Every port is asked, so that none keeps its loss for a later change.
        if ports.iter().filter(|port| has_lost(port)).count() > 0 {
            self.wake();
        }
    }

    /// The counters.
    pub(crate) fn swept(&self) -> &Arc<Swept> {
        &self.swept
    }

    /// Wakes the thread, because a UDP endpoint or frontend is gone.
    pub(crate) fn wake(&self) {
        // A wake-up that is still queued serves for this one too. A thread that has ended needs none.
        let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.wake = None;
        // It panics only by a bug, which the panic message has reported.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The endpoints that serve each frontend, as they were when first asked for.
#[derive(Debug, Default)]
struct Serving(HashMap<SocketAddr, BTreeSet<SocketAddr>>);

impl Serving {
    /// Whether a socket may stay connected to its endpoint, by the rule for relayed flows.
    fn has(&mut self, table: &mut Reader, socket: &Translated) -> bool {
        let endpoints = self.0.entry(socket.service).or_insert_with(|| {
            let key = FrontendKey::new(socket.service.ip(), socket.service.port(), Protocol::Udp);
            let Some(route) = table.lookup(key) else { return BTreeSet::new() };
            let endpoints = route.service_port().endpoints().into_iter();
            endpoints
                .filter(|upstream| route.keeps_flow(upstream))
                .map(|upstream| upstream.address())
                .collect()
        });
        endpoints.contains(&socket.endpoint)
    }
}

/// A look at all sockets.
trait Look {
    /// Ends the sockets whose endpoint or Service is gone.
    fn end_stale(&mut self) -> io::Result<EndedSockets>;

    /// Leaves pods' new sockets to the relay, because some of them cannot be ended.
    fn leave_pods(&mut self);

    /// Has pods' new sockets translated again.
    fn take_pods(&mut self);
}

struct InKernel {
    census: Census,
    endable: Endable,
    table: Reader,
}

impl Look for InKernel {
    fn end_stale(&mut self) -> io::Result<EndedSockets> {
        let mut serving = Serving::default();
        self.census.end_datagram_sockets(|socket| !serving.has(&mut self.table, socket))
    }

    fn leave_pods(&mut self) {
        self.census.set_endable(Endable { of_pods: false, ..self.endable });
    }

    fn take_pods(&mut self) {
        self.census.set_endable(self.endable);
    }
}

/// The times to wait.
#[derive(Debug, Clone, Copy)]
struct Pace {
    pause: Duration,
    /// After a look for which it was woken.
    again: Duration,
    /// How long pods are left to the relay the first time; it doubles each time.
    absence: Duration,
    /// After this long without another time, the next one counts as the first.
    forgotten: Duration,
}

const PACE: Pace = Pace { pause: PAUSE, again: AGAIN, absence: ABSENCE, forgotten: LONGEST_ABSENCE };

/// How long pods are left to the relay.
#[derive(Debug)]
struct Absence {
    next: Duration,
    /// Since when they have been translated again.
    led_since: Option<Instant>,
}

impl Absence {
    fn new(pace: Pace) -> Self {
        Self { next: pace.absence, led_since: None }
    }

    /// Starts to leave pods to the relay; returns for how long at the least.
    fn begin(&mut self, now: Instant, pace: Pace) -> Duration {
        // After this long, a new failure has nothing to do with the last one.
        if self.led_since.is_some_and(|since| now.saturating_duration_since(since) >= pace.forgotten) {
            self.next = pace.absence;
        }
        let least = self.next;
        self.next = LONGEST_ABSENCE.min(least * 2);
        least
    }

    /// Pods are translated again.
    fn end(&mut self, now: Instant) {
        self.led_since = Some(now);
    }
}

/// Looks whenever it is woken, and again after a failure. Returns once nobody is left who could wake it.
fn follow(woken: &Receiver<()>, pace: Pace, swept: &Swept, mut look: impl Look) {
    let pause = pace.pause;
    let mut absence = Absence::new(pace);
    let mut not_before = Instant::now();
    let mut retry: Option<Duration> = None;
    // Until when, at the least, pods are left to the relay.
    let mut left_until: Option<Instant> = None;
    let mut again_at: Option<Instant> = None;
    loop {
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        let back = left_until.map(|at| until(at).max(pause));
        let due = [back, again_at.map(until)].into_iter().flatten().min();
        let Some(is_woken) = wait(woken, retry.or(due), not_before) else { return };
        let start = Instant::now();
        again_at = again_at.filter(|at| *at > start);
        let done = look.end_stale();
        let has_left = done.as_ref().is_ok_and(|done| done.refused + done.unreached > 0);
        let trouble = judge(done, swept);
        let end = Instant::now();
        not_before = end + rest(end - start, pause);
        if is_woken {
            again_at = Some(end + pace.again);
        }
        match &trouble {
            // A namespace may go at any moment with its sockets: only trouble that stays is logged, and only
            // once.
            Some(trouble) if retry == Some(pause) => {
                warn!(
                    "connected UDP sockets may wait for endpoints that are gone: {trouble}; this is tried again"
                );
                if has_left && left_until.is_none() {
                    look.leave_pods();
                    let least = absence.begin(end, pace);
                    warn!(
                        "pods' UDP sockets that connect from now on are relayed, for {} s at the least and as long as \
                         one is left",
                        least.as_secs()
                    );
                    left_until = Some(end + least);
                }
            }
            None if left_until.is_some_and(|until| until <= end) => {
                look.take_pods();
                info!(
                    "pods' UDP sockets that connect are led to endpoints again: none is left that cannot be ended"
                );
                left_until = None;
                absence.end(end);
            }
            _ => {}
        }
        retry = trouble.map(|_| retry.map_or(pause, |last| LONGEST_RETRY.min(last * 2)));
    }
}

/// Waits for a wake-up, at most `within` if that is set, but not less than until `not_before`. Returns whether
/// it was woken; `None` once nobody is left who could do it.
fn wait(woken: &Receiver<()>, within: Option<Duration>, not_before: Instant) -> Option<bool> {
    let is_woken = |within| match woken.recv_timeout(within) {
        Ok(()) => Some(true),
        Err(RecvTimeoutError::Timeout) => Some(false),
        Err(RecvTimeoutError::Disconnected) => None,
    };
    let mut was = match within {
        None => woken.recv().is_ok().then_some(true)?,
        Some(within) => is_woken(within)?,
    };
    // Wake-ups until then lead to the same look.
    while let Some(left) = not_before.checked_duration_since(Instant::now()) {
        was |= is_woken(left)?;
    }
    Some(was)
}

/// How long to pause after a look that took `took`.
fn rest(took: Duration, least: Duration) -> Duration {
    took.saturating_mul(REST).min(LONGEST_PAUSE).max(least)
}

/// Counts the results of a look. Returns what is wrong, and what helps.
fn judge(done: io::Result<EndedSockets>, swept: &Swept) -> Option<String> {
    let trouble = match done {
        Err(error) => Some(format!("not all sockets were looked at ({error})")),
        Ok(done) => {
            let EndedSockets { ended, .. } = done;
            if ended > 0 {
                swept.ended.fetch_add(ended as u64, Ordering::Relaxed);
                info!(sockets = ended, "connected UDP sockets were ended, as their endpoints are gone");
            }
            done.trouble()
        }
    };
    if trouble.is_some() {
        swept.failed.fetch_add(1, Ordering::Relaxed);
    }
    trouble
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A look that returns the given results.
    struct Told<'a, A> {
        answers: A,
        looks: SyncSender<()>,
        left: &'a AtomicU64,
        taken: &'a AtomicU64,
    }

    impl<A: Iterator<Item = io::Result<EndedSockets>>> Look for Told<'_, A> {
        fn end_stale(&mut self) -> io::Result<EndedSockets> {
            // A test that has seen enough may have stopped to receive.
            let _ = self.looks.send(());
            self.answers.next().unwrap_or(Ok(EndedSockets::default()))
        }

        fn leave_pods(&mut self) {
            self.left.fetch_add(1, Ordering::Relaxed);
        }

        fn take_pods(&mut self) {
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
    }

    const QUICK: Pace = Pace {
        pause: Duration::from_millis(1),
        again: LONGEST_ABSENCE,
        absence: LONGEST_ABSENCE,
        forgotten: LONGEST_ABSENCE,
    };

    #[test]
    fn a_look_is_followed_by_a_pause_that_grows_with_it_up_to_a_bound() {
        let pauses = [1, 200, 20_000, u64::MAX].map(|took| rest(Duration::from_millis(took), PAUSE));
        assert_eq!(pauses, [PAUSE, Duration::from_secs(4), LONGEST_PAUSE, LONGEST_PAUSE]);
    }

    #[test]
    fn pods_are_left_for_twice_as_long_each_time_until_none_had_to_be_for_long() {
        let mut absence = Absence::new(PACE);
        let mut now = Instant::now();
        // Leaves pods to the relay, then has them translated for so many seconds.
        let mut left_for = |led: u64| {
            let least = absence.begin(now, PACE);
            absence.end(now + least);
            now += least + Duration::from_secs(led);
            least.as_secs()
        };
        assert_eq!([1, 1, 1, 3_599, 3_600].map(&mut left_for), [60, 120, 240, 480, 960]);
        assert_eq!([1; 8].map(left_for), [60, 120, 240, 480, 960, 1_920, 3_600, 3_600]);
    }

    #[test]
    fn what_has_failed_is_tried_again_and_what_came_meanwhile_is_one_look() {
        let (wake, woken) = sync_channel(1);
        let (looks, looked) = sync_channel(0);
        let (swept, left, taken) = (Swept::default(), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let answers = [
                Err(io::ErrorKind::OutOfMemory.into()),
                Ok(EndedSockets { ended: 2, refused: 1, ..EndedSockets::default() }),
                Ok(EndedSockets { ended: 1, ..EndedSockets::default() }),
            ]
            .into_iter();
            let (swept, left, taken) = (&swept, &left, &taken);
            let look = Told { answers, looks, left, taken };
            scope.spawn(move || follow(&woken, QUICK, swept, look));
            wake.send(()).unwrap();
            // Once because it was woken, and twice more by itself.
            (0..3).for_each(|_| looked.recv_timeout(PATIENCE).unwrap());
            wake.send(()).unwrap();
            looked.recv_timeout(PATIENCE).unwrap();
            // Nothing fails any more: it waits.
            assert!(looked.recv_timeout(Duration::from_millis(20)).is_err());
            drop(wake);
        });
        assert_eq!((swept.ended(), swept.failed()), (3, 2));
        assert_eq!(left.into_inner(), 1, "a second look had left one");
        assert_eq!(taken.into_inner(), 0, "it is not time yet");
    }

    #[test]
    fn a_look_that_it_was_woken_for_is_followed_by_one_more() {
        let (wake, woken) = sync_channel(1);
        let (looks, looked) = sync_channel(0);
        let (swept, left, taken) = (Swept::default(), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let answers =
                [Ok(EndedSockets::default()), Ok(EndedSockets { ended: 1, ..EndedSockets::default() })];
            let look = Told { answers: answers.into_iter(), looks, left: &left, taken: &taken };
            let pace = Pace { again: Duration::from_millis(2), ..QUICK };
            let swept = &swept;
            scope.spawn(move || follow(&woken, pace, swept, look));
            for _ in 0..2 {
                wake.send(()).unwrap();
                (0..2).for_each(|_| looked.recv_timeout(PATIENCE).unwrap());
                // Nor is it ended by the second look: it waits.
                assert!(looked.recv_timeout(Duration::from_millis(20)).is_err());
            }
            drop(wake);
        });
        assert_eq!((swept.ended(), swept.failed()), (1, 0));
    }

    #[test]
    fn a_socket_that_is_not_found_is_tried_again_and_costs_the_others_nothing() {
        let (wake, woken) = sync_channel(1);
        let (looks, looked) = sync_channel(0);
        let (swept, left, taken) = (Swept::default(), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let answers =
                std::iter::repeat_with(|| Ok(EndedSockets { missed: 1, ..EndedSockets::default() })).take(3);
            let (swept, left, taken) = (&swept, &left, &taken);
            let look = Told { answers, looks, left, taken };
            scope.spawn(move || follow(&woken, QUICK, swept, look));
            wake.send(()).unwrap();
            (0..4).for_each(|_| looked.recv_timeout(PATIENCE).unwrap());
            drop(wake);
        });
        assert_eq!((swept.ended(), swept.failed()), (0, 3));
        assert_eq!((left.into_inner(), taken.into_inner()), (0, 0));
    }

    #[test]
    fn pods_are_decided_about_again_once_none_is_left_that_cannot_be_ended() {
        let (wake, woken) = sync_channel(1);
        let (looks, looked) = sync_channel(0);
        let (swept, left, taken) = (Swept::default(), AtomicU64::new(0), AtomicU64::new(0));
        let stays = || Ok(EndedSockets { unreached: 1, ..EndedSockets::default() });
        let counts = || [&left, &taken].map(|count| count.load(Ordering::Relaxed));
        std::thread::scope(|scope| {
            let answers = [stays(), stays(), stays(), Ok(EndedSockets::default())].into_iter();
            let look = Told { answers, looks, left: &left, taken: &taken };
            let pace = Pace { absence: Duration::from_millis(2), ..QUICK };
            let swept = &swept;
            scope.spawn(move || follow(&woken, pace, swept, look));
            wake.send(()).unwrap();
            // Once a look begins, the counts include the ones before.
            (0..3).for_each(|_| looked.recv_timeout(PATIENCE).unwrap());
            assert_eq!(counts(), [1, 0]);
            // In this look, none is left.
            looked.recv_timeout(PATIENCE).unwrap();
            drop(looked);
            drop(wake);
        });
        assert_eq!(counts(), [1, 1]);
    }
}
