//! Values of flags as kube-proxy takes them, and people write them.

use std::time::Duration;

use jiff::SignedDuration;

/// `25`, which is seconds, or `25s`, `1m30s`, `250ms`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const EXAMPLES: &str = "write seconds, as 25, or a duration, as 25s, 1m30s or 500ms";
    // More than an `Instant` can be put off by makes no sense; these are 136 years.
    const MAX: Duration = Duration::from_secs(u32::MAX as u64);
    let duration = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let duration = text.parse::<SignedDuration>().map_err(|_| EXAMPLES.to_owned())?;
            Duration::try_from(duration).map_err(|_| "it cannot be negative".to_owned())?
        }
    };
    if duration > MAX { Err(format!("more than {} s", MAX.as_secs())) } else { Ok(duration) }
}

/// What Go takes for a boolean (`strconv.ParseBool`).
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        #[rustfmt::skip]
        let cases = [
            ("25",       Some(25_000)),
            ("0",        Some(0)),
            ("25s",      Some(25_000)),
            ("1m30s",    Some(90_000)),
            ("2h22m",    Some(8_520_000)),
            ("500ms",    Some(500)),
            ("1.5s",     Some(1_500)),
            ("0s",       Some(0)),
            ("-1s",      None),
            ("-1",       None),
            ("",         None),
            ("soon",     None),
            ("99999999999", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(duration(text).ok(), wanted.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn booleans() {
        for (text, wanted) in
            [("true", Some(true)), ("0", Some(false)), ("False", Some(false)), ("yes", None)]
        {
            assert_eq!(boolean(text).ok(), wanted, "{text}");
        }
    }
}
