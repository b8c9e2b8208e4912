//! How errors are said.

/// What went wrong and why, down to the first cause. Nothing is said twice: many errors have their cause in their own
/// words already.
pub fn reasons(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if said.contains(&cause) {
            continue;
        }
        if !said.is_empty() {
            said.push_str(": ");
        }
        said.push_str(&cause);
    }
    said
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        let error = std::io::Error::from_raw_os_error(2);
        let said = error.to_string();
        let outer =
            anyhow::Error::new(error).context(format!("cannot read a: {said}")).context("cannot start");
        assert_eq!(reasons(&outer), format!("cannot start: cannot read a: {said}"));
        let nested = Err::<(), _>(anyhow!("b")).context("a").unwrap_err();
        assert_eq!(reasons(&nested), "a: b");
    }
}
