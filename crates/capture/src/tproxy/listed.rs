//! Reads the tables by listing them with nft.

use tracing::debug;

use super::elements::Elements;
use super::listing::{self, Listing};
use super::{Error, nft};
use crate::program;

/// Our current table, with our elements. The inner error means that the output of this version of nft is not
/// understood.
///
/// # Errors
/// nft fails.
pub(super) fn listing() -> Result<serde_json::Result<Listing>, Error> {
    // Somebody else's table may make nft fail, or its listing may not be understood.
    let read = |json: Vec<u8>| {
        let mut listing = Listing::default();
        listing.read(&json).map(|()| listing)
    };
    let among_others = nft::run(&listing::TABLES, "").ok().and_then(|json| read(json).ok());
    let mut listing = match among_others {
        Some(listing) => listing,
        None => match read(nft::run(&listing::OUR_TABLE, "")?) {
            Ok(listing) => listing,
            Err(error) => return Ok(Err(error)),
        },
    };
    for arguments in listing::each_set() {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match nft::run(&arguments, "") {
            Ok(json) => {
                if let Err(error) = listing.read(&json) {
                    return Ok(Err(error));
                }
            }
            // A set that does not exist is missing in the table's listing, too.
            Err(Error::Nft(program::Error::Failed { message, .. })) => {
                debug!("a set is not listed: {message}")
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Ok(listing))
}

/// The elements of our table; `None` unless all of them are understood.
pub(super) fn elements() -> Option<Elements> {
    let listing = listing().ok()?.ok()?;
    (listing.strangers == 0).then_some(listing.elements)
}

/// A table in nft's listing, without elements and counters, with numeric priorities; `None` if it does not exist.
///
/// nft 1.0 fetches all elements to list one table without them, but not to list all tables, which takes a tenth
/// of the time. If that fails because of somebody else's table, ours is listed alone.
///
/// # Errors
/// nft fails.
pub(super) fn structure(family: &str, table: &str) -> Result<Option<String>, Error> {
    let list = |what: &[&str]| {
        let listed =
            nft::run(&[&["--stateless", "--terse", "--numeric-priority", "list"], what].concat(), "")?;
        Ok(find_table(family, table, &String::from_utf8_lossy(&listed)))
    };
    list(&["ruleset", family]).or_else(|error: Error| {
        debug!("cannot list all tables: {error}");
        let names = nft::run(&["list", "tables", family], "")?;
        let name = format!("table {family} {table}");
        if String::from_utf8_lossy(&names).lines().any(|line| line == name) {
            list(&["table", family, table])
        } else {
            Ok(None)
        }
    })
}

/// The part of a listing that shows a table.
fn find_table(family: &str, table: &str, listing: &str) -> Option<String> {
    let first = format!("table {family} {table} {{");
    let mut lines = listing.lines().skip_while(|line| *line != first).peekable();
    lines.peek()?;
    let mut found = String::new();
    for line in lines.take_while(|line| *line != "}") {
        found.push_str(line);
        found.push('\n');
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::super::ruleset::{INET, TABLE};
    use super::*;

    #[test]
    fn our_table_among_others() {
        let listing = "table inet filter {\n\tchain a {\n\t}\n}\ntable inet sluice {\n\tmap b {\n\t}\n}\n\
                       table inet sluice2 {\n\tset c {\n\t}\n}\n";
        assert_eq!(find_table(INET, TABLE, listing).unwrap(), "table inet sluice {\n\tmap b {\n\t}\n");
        assert_eq!(find_table(INET, TABLE, "table inet sluice2 {\n}\n"), None);
        assert_eq!(find_table(INET, TABLE, ""), None);
    }
}
