use std::sync::atomic::{AtomicU64, Ordering};

use sluice_table::WriterConfig;

use super::*;

/// A place where attaching fails.
#[derive(Clone)]
struct Failing {
    hindrance: Hindrance,
    attempts: Arc<AtomicU64>,
    removals: Arc<AtomicU64>,
    /// How often it was taken away from whoever holds it.
    taken: Arc<AtomicU64>,
}

impl Failing {
    fn new(hindrance: Hindrance) -> Self {
        Self { hindrance, attempts: Arc::default(), removals: Arc::default(), taken: Arc::default() }
    }

    fn start(&self, writer: &mut Writer) -> SocketMode {
        let wish = AtSocketWish::Wanted(AtSocketConfig::new(None, "/pins".into()));
        SocketMode::start_at(wish, writer, Box::new(self.clone()))
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
    fn attach(&mut self, _: &AtSocketConfig, _: &Table) -> Result<(Attached, Looks), NotAttached> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        Err(NotAttached { reason: "no memory".into(), hindrance: self.hindrance })
    }

    fn remove(&mut self, pins: &Path) -> io::Result<Removed> {
        assert_eq!(pins, "/pins");
        self.removals.fetch_add(1, Ordering::SeqCst);
        Ok(Removed { was_there: true, left: None })
    }

    fn remove_held(&mut self, pins: &Path) -> io::Result<Removed> {
        assert_eq!(pins, "/pins");
        self.taken.fetch_add(1, Ordering::SeqCst);
        Ok(Removed { was_there: true, left: None })
    }
}

/// Socket mode that another agent has, as long as this one looks; it is time to look again. And how often it has looked.
pub(crate) fn busy(writer: &mut Writer) -> (SocketMode, Arc<AtomicU64>) {
    let place = Failing::new(Hindrance::Busy);
    let mut mode = place.start(writer);
    mode.looked = mode.looked.checked_sub(ATTACH_RETRY).expect("the machine runs for longer than that");
    (mode, place.attempts)
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
        mode.take_over(start + Duration::from_secs(second), &mut writer);
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
    mode.take_over(mode.looked + Duration::from_secs(3600), &mut writer);
    assert_eq!((place.attempts(), place.removals()), (1, 1));
    assert_eq!(*mode.view().reason().unwrap(), "no memory");
}

#[test]
fn from_an_agent_that_is_replaced_and_does_not_let_go_it_is_taken_away_after_a_minute() {
    let place = Failing::new(Hindrance::Busy);
    let mut writer = Writer::new(WriterConfig::new("here"));
    let mut mode = place.start(&mut writer);
    // However long this one takes to know all: until then the other one serves, and is to.
    let (start, mut attempts) = (mode.looked + Duration::from_secs(3_600), place.attempts());
    let why = |mode: &SocketMode| mode.view().reason().unwrap().to_string();
    for second in 0..=125 {
        assert!(
            second > 60 || why(&mode).starts_with("another agent's programs decide so far"),
            "{}",
            why(&mode)
        );
        mode.take_over(start + Duration::from_secs(second), &mut writer);
        // Once it is taken away that is made use of at once.
        attempts += if second > 0 && second % 60 == 0 { 2 } else { 1 };
        assert_eq!((second, place.taken(), place.attempts()), (second, second / 60, attempts));
    }
    assert_eq!((why(&mode), place.removals()), ("no memory".to_owned(), 0));
}
