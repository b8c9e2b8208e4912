use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sluice_socket::Removed;
use sluice_table::{Table, WriterConfig};

use super::*;

/// A place where attaching fails.
#[derive(Clone)]
struct Failing {
    hindrance: Hindrance,
    attempts: Arc<AtomicU64>,
    removals: Arc<AtomicU64>,
    /// How often it was taken away from its holder.
    taken: Arc<AtomicU64>,
    /// Whether another agent holds it.
    is_held: Arc<AtomicBool>,
    is_of_another_size: bool,
    is_asked_for: Arc<AtomicBool>,
}

impl Failing {
    fn new(hindrance: Hindrance) -> Self {
        let (attempts, removals, taken) = Default::default();
        let (is_held, is_asked_for) = Default::default();
        Self { hindrance, attempts, removals, taken, is_held, is_of_another_size: false, is_asked_for }
    }

    fn start(&self, writer: &mut Writer) -> SocketMode {
        let wish = AtSocketWish::Wanted(AtSocketConfig::new(None, "/pins".into()));
        SocketMode::start_at(wish, None, writer, Box::new(self.clone()))
    }

    fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::SeqCst)
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::SeqCst)
    }

    fn removals(&self) -> u64 {
        self.removals.load(Ordering::SeqCst)
    }
}

impl Place for Failing {
    fn would_begin_anew(&self, _: &AtSocketConfig) -> bool {
        self.is_of_another_size
    }

    fn attach(&mut self, _: &AtSocketConfig, _: &Table) -> Result<(Attached, Looks), NotAttached> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        Err(NotAttached { reason: "no memory".into(), hindrance: self.hindrance })
    }

    fn remove(&mut self, pins: &Path) -> io::Result<Removed> {
        assert_eq!(pins, "/pins");
        self.removals.fetch_add(1, Ordering::SeqCst);
        if self.is_held.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(Removed { was_there: true, left: None })
    }

    fn remove_held(&mut self, pins: &Path) -> io::Result<Removed> {
        assert_eq!(pins, "/pins");
        self.taken.fetch_add(1, Ordering::SeqCst);
        Ok(Removed { was_there: true, left: None })
    }

    fn forget(&mut self, _: &Path, _: &[Frontend]) -> io::Result<usize> {
        Ok(0)
    }

    fn ask_for(&mut self, pins: &Path) -> io::Result<()> {
        assert_eq!(pins, "/pins");
        self.is_asked_for.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn is_asked_for(&self, _: &Path) -> bool {
        self.is_asked_for.load(Ordering::SeqCst)
    }

    fn let_go(&mut self, _: &Path) {
        self.is_asked_for.store(false, Ordering::SeqCst);
    }
}

/// Socket mode that another agent holds whenever this one tries to attach; and how often this one has tried.
pub(crate) fn busy(writer: &mut Writer) -> (SocketMode, Arc<AtomicU64>) {
    let place = Failing::new(Hindrance::Busy);
    (place.start(writer), place.attempts)
}

#[test]
fn where_the_system_is_short_of_something_programs_stay_for_a_minute_and_attaching_is_tried_ever_more_rarely()
{
    let place = Failing::new(Hindrance::Passing);
    let mut writer = Writer::new(WriterConfig::new("here"));
    let mut mode = place.start(&mut writer);
    let start = mode.looked;
    let why = |mode: &SocketMode| mode.view().reason().unwrap().to_string();
    assert_eq!((place.attempts(), place.removals()), (1, 0));
    assert!(why(&mode).starts_with("tried again, and what an earlier agent"), "{}", why(&mode));

    let mut attempts = Vec::new();
    for second in 1..=1_000 {
        let before = place.attempts();
        mode.take_over(start + Duration::from_secs(second), &mut writer, true);
        if place.attempts() > before {
            attempts.push((second, place.removals()));
        }
        let words = if place.removals() == 0 { "goes on until then" } else { "every 5 minutes" };
        assert!(why(&mode).contains(words) && why(&mode).contains("no memory"), "{}", why(&mode));
    }
    let wanted = [(1, 0), (3, 0), (7, 0), (15, 0), (31, 0), (47, 0), (63, 1), (363, 2), (663, 3), (963, 4)];
    assert_eq!(attempts, wanted, "when it was tried, and how often programs had been removed by then");
}

#[test]
fn where_attaching_would_fail_again_programs_go_at_once_and_it_is_not_tried_any_more() {
    let place = Failing::new(Hindrance::Lasting);
    let mut writer = Writer::new(WriterConfig::new("here"));
    let mut mode = place.start(&mut writer);
    assert_eq!((place.attempts(), place.removals()), (1, 1));
    mode.take_over(mode.looked + Duration::from_secs(3600), &mut writer, true);
    assert_eq!((place.attempts(), place.removals()), (1, 1));
    assert_eq!(*mode.view().reason().unwrap(), "no memory");
}

#[test]
fn from_an_agent_that_is_replaced_and_does_not_let_go_it_is_taken_away_after_a_minute() {
    let place = Failing::new(Hindrance::Busy);
    let mut writer = Writer::new(WriterConfig::new("here"));
    let mut mode = place.start(&mut writer);
    // However long this agent takes to fill its table: until then, the other one serves, and should.
    let (start, mut attempts) = (mode.looked + Duration::from_secs(3_600), place.attempts());
    let why = |mode: &SocketMode| mode.view().reason().unwrap().to_string();
    for second in 0..=125 {
        assert!(
            second > 60 || why(&mode).starts_with("another agent's programs decide so far"),
            "{}",
            why(&mode)
        );
        mode.take_over(start + Duration::from_secs(second), &mut writer, true);
        // Once it is taken away, this agent tries again at once.
        attempts += if second > 0 && second % 60 == 0 { 2 } else { 1 };
        assert_eq!((second, place.taken(), place.attempts()), (second, second / 60, attempts));
    }
    assert_eq!((why(&mode), place.removals()), ("no memory".to_owned(), 0));
}

#[test]
fn what_another_agent_has_left_is_removed_once_it_lets_go_where_nothing_is_to_be_decided_at_sockets() {
    let lasting = Failing::new(Hindrance::Lasting);
    for (wish, reason) in [
        (AtSocketWish::None, None),
        (AtSocketWish::Lacking("this node lacks BTF".into()), Some("this node lacks BTF")),
        (AtSocketWish::Wanted(AtSocketConfig::new(None, "/pins".into())), Some("no memory")),
    ] {
        let place = Failing { removals: Arc::default(), is_held: Arc::default(), ..lasting.clone() };
        place.is_held.store(true, Ordering::SeqCst);
        let mut writer = Writer::new(WriterConfig::new("here"));
        let pins = Some("/pins".into());
        let mut mode = SocketMode::start_at(wish, pins, &mut writer, Box::new(place.clone()));
        let start = Instant::now();
        let why = |mode: &SocketMode| mode.view().reason().map(|reason| reason.to_string());
        assert!(why(&mode).unwrap().starts_with("an earlier agent's programs still decide"));
        let mut after = |seconds: u64| {
            mode.take_over(start + Duration::from_secs(seconds), &mut writer, true);
            (place.removals(), why(&mode).is_some_and(|why| why.starts_with("an earlier agent")))
        };
        assert_eq!([after(0), after(1), after(2)], [(2, true), (3, true), (4, true)]);
        place.is_held.store(false, Ordering::SeqCst);
        assert_eq!([after(3), after(4)], [(5, false), (5, false)]);
        assert_eq!(why(&mode).as_deref(), reason);
    }
    assert_eq!(lasting.taken(), 0);
}

#[test]
fn from_an_agent_that_does_not_let_go_it_is_taken_away_after_a_minute_where_nothing_is_to_be_decided() {
    let place = Failing::new(Hindrance::Lasting);
    place.is_held.store(true, Ordering::SeqCst);
    let mut writer = Writer::new(WriterConfig::new("here"));
    let place = Box::new(place);
    let (pins, taken) = (Some("/pins".into()), Arc::clone(&place.taken));
    let mut mode = SocketMode::start_at(AtSocketWish::None, pins, &mut writer, place);
    // However long this agent takes to fill its table.
    let start = Instant::now() + Duration::from_secs(3_600);
    for second in 0..=120 {
        mode.take_over(start + Duration::from_secs(second), &mut writer, true);
        assert_eq!(taken.load(Ordering::SeqCst), u64::from(second >= 60), "{second}");
    }
}

#[test]
fn what_an_earlier_agent_has_attached_goes_on_until_all_is_known_where_maps_are_to_have_another_size() {
    let place = Failing { is_of_another_size: true, ..Failing::new(Hindrance::Busy) };
    let mut writer = Writer::new(WriterConfig::new("here"));
    let mut mode = place.start(&mut writer);
    assert_eq!((place.attempts(), place.removals()), (0, 0));
    assert!(mode.view().reason().unwrap().starts_with("what an earlier agent has attached goes on"));
    // The table is complete.
    mode.take_over(mode.looked, &mut writer, true);
    assert_eq!((place.attempts(), place.removals()), (1, 0));
}

#[test]
fn what_another_agent_holds_is_asked_for_and_had_as_soon_as_it_lets_go() {
    let place = Failing::new(Hindrance::Busy);
    let mut writer = Writer::new(WriterConfig::new("here"));
    let mut mode = place.start(&mut writer);
    let now = mode.looked;
    assert!(!place.is_asked_for.load(Ordering::SeqCst) && !mode.is_handing_over(), "not before all is known");
    for _ in 0..3 {
        mode.take_over(now, &mut writer, true);
        assert!(place.is_asked_for.load(Ordering::SeqCst) && mode.is_handing_over());
        assert_eq!(place.attempts(), 2);
    }
    place.is_asked_for.store(false, Ordering::SeqCst);
    mode.take_over(now, &mut writer, true);
    assert_eq!(place.attempts(), 3);
}
