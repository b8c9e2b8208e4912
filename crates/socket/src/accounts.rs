//! The programs' counters.

use std::io;
use std::os::fd::BorrowedFd;

use sluice_socket_maps::{Account, Counters, STRIPES, Totals};
use sluice_sys::bpf::Mapping;

use crate::attached::{halves, load};

/// The programs' counters, for reading.
#[derive(Debug)]
pub struct Accounts {
    accounts: Mapping,
    totals: Mapping,
}

impl Accounts {
    pub(crate) fn new(accounts: BorrowedFd<'_>, totals: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { accounts: Mapping::new(accounts)?, totals: Mapping::new(totals)? })
    }
}

impl Counters for Accounts {
    fn account(&self, id: u32) -> Account {
        account(&self.accounts, id)
    }

    fn totals(&self) -> Totals {
        let mut sum = Totals::default();
        for stripe in 0..STRIPES {
            let words: [u64; size_of::<Totals>() / 8] = load(self.totals.words(), stripe);
            let [aborted, timeouts, lives @ .., _, _, _, _, _] = words;
            sum.aborted += aborted;
            sum.timeouts += timeouts;
            sum.lives.iter_mut().zip(lives).for_each(|(sum, more)| *sum += more);
        }
        sum
    }
}

pub(crate) fn account(accounts: &Mapping, id: u32) -> Account {
    let [made, failed, bytes_to, bytes_from, duration_us] = load(accounts.words(), id);
    let ((connections, closed), (failed, served)) = (halves(made), halves(failed));
    Account { connections, closed, failed, served, bytes_to, bytes_from, duration_us }
}
