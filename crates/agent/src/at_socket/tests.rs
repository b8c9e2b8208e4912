use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// Socket mode that another agent has, as long as this one looks; it is time to look again. And how often it has looked.
pub(crate) fn busy(writer: &mut Writer) -> (SocketMode, Arc<AtomicU64>) {
    let looks = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&looks);
    let attach = move |_: &AtSocketConfig, _: &Table| {
        counted.fetch_add(1, Ordering::SeqCst);
        Err(NotAttached { reason: "another agent has it".into(), is_busy: true })
    };
    let wish = AtSocketWish::Wanted(AtSocketConfig::new(None, "/nowhere".into()));
    let mut mode = SocketMode::start_with(wish, writer, Box::new(attach));
    mode.looked = mode.looked.checked_sub(ATTACH_RETRY).expect("the machine runs for longer than that");
    (mode, looks)
}
