//! Values of flags, in the forms that kube-proxy takes and people write.

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use jiff::SignedDuration;

/// Parses `25`, which is seconds, or `25s`, `1m30s`, `250ms`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const EXAMPLES: &str = "write seconds, as 25, or a duration, as 25s, 1m30s or 500ms";
    // An `Instant` cannot be moved by more; these are 136 years.
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

/// The same, but not zero.
pub(crate) fn some_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it is to be longer than nothing; leave it out for the default".to_owned()),
        some => Ok(some),
    }
}

/// Parses a number of at least one.
pub(crate) fn at_least_one(text: &str) -> Result<NonZeroUsize, &'static str> {
    text.parse().map_err(|_| "write a number from 1 on")
}

/// One in so many, or none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample(pub Option<NonZeroU32>);

/// Parses `off`, `all` or `1/N`.
pub(crate) fn sample(text: &str) -> Result<Sample, String> {
    match text {
        "off" => Ok(Sample(None)),
        "all" => Ok(Sample(Some(NonZeroU32::MIN))),
        _ => {
            let one_in = text.strip_prefix("1/").and_then(|text| text.parse().ok());
            one_in
                .map(|one_in| Sample(Some(one_in)))
                .ok_or("write off, all, or one in so many, as 1/100".into())
        }
    }
}

/// Parses a CIDR.
///
/// # Errors
/// It is no CIDR: the error says how to write one, and what `what` may be.
pub(crate) fn cidr(text: &str, what: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return format!("a single address is written {}", IpNet::from(ip));
        }
        match text.split_once('/').map(|(address, _)| address.parse::<IpAddr>()) {
            Some(Ok(ip)) => {
                let most = IpNet::from(ip).prefix_len();
                format!(
                    "behind the slash goes a number from 0 to {most}, the length of the prefix: as {ip}/{most} it is \
                     this address alone"
                )
            }
            _ => format!("write {what}, as 192.0.2.0/24 or 2001:db8::/32"),
        }
    })
}

/// Parses one CIDR of a list.
pub(crate) fn listed_cidr(text: &str) -> Result<Listed<IpNet>, String> {
    if text.is_empty() { Ok(Listed(None)) } else { cidr(text, "CIDRs").map(|cidr| Listed(Some(cidr))) }
}

/// Parses a boolean as Go does (`strconv.ParseBool`).
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}

/// One element of a list that may be empty. kube-proxy's manifests often have an empty one (`--cluster-cidr=`),
/// which is a single empty element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<T>(pub Option<T>);

impl<T: FromStr> FromStr for Listed<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() { Ok(Self(None)) } else { text.parse().map(|element| Self(Some(element))) }
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
    fn a_cidr_that_is_none_is_answered_with_what_is_wrong() {
        #[rustfmt::skip]
        let cases = [
            ("10.0.0.0/33",    "from 0 to 32, the length of the prefix"),
            ("2001:db8::/129", "from 0 to 128, the length of the prefix"),
            ("10.0.0.0/",      "from 0 to 32, the length of the prefix"),
            ("10.0.0.0",       "a single address is written 10.0.0.0/32"),
            ("pods",           "write CIDRs, as 192.0.2.0/24 or 2001:db8::/32"),
        ];
        for (text, wanted) in cases {
            let said = listed_cidr(text).unwrap_err();
            assert!(said.contains(wanted), "{text}: {said}");
        }
        assert_eq!(listed_cidr(""), Ok(Listed(None)));
    }

    #[test]
    fn samples() {
        let cases = [
            ("off", Ok(None)),
            ("all", Ok(Some(1))),
            ("1/100", Ok(Some(100))),
            ("1/0", Err(())),
            ("100", Err(())),
            ("2/3", Err(())),
        ];
        for (text, wanted) in cases {
            let got = sample(text).map(|sample| sample.0.map(NonZeroU32::get)).map_err(drop);
            assert_eq!(got, wanted, "{text}");
        }
        assert!(some_duration("0s").is_err() && some_duration("1s").is_ok());
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
