//! What is said, once, of kube-proxy's settings that have no effect.

use super::table::Meaning;

/// A setting that was given, and why it has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// As it was written: a flag with dashes, or a field.
    pub name: String,
    pub meaning: Meaning,
}

/// One line about all of them; none where there are none.
pub(super) fn line(named: &[Named]) -> Option<String> {
    let classes: [(&str, fn(Meaning) -> Option<&'static str>); 3] = [
        ("without meaning here", |meaning| match meaning {
            Meaning::Meaningless(why) => Some(why),
            _ => None,
        }),
        ("to be had in another way", |meaning| match meaning {
            Meaning::Elsewhere(how) => Some(how),
            _ => None,
        }),
        ("not offered", |meaning| match meaning {
            Meaning::NotOffered(why) => Some(why),
            _ => None,
        }),
    ];
    let mut said = Vec::new();
    for (class, why) in classes {
        // Those with one reason together, in the order in which they were given.
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for Named { name, meaning } in named {
            let Some(why) = why(*meaning) else { continue };
            match reasons.iter_mut().find(|(known, _)| *known == why) {
                Some((_, names)) => names.push(name),
                None => reasons.push((why, vec![name])),
            }
        }
        if !reasons.is_empty() {
            let reasons: Vec<_> =
                reasons.iter().map(|(why, names)| format!("{} ({why})", names.join(", "))).collect();
            said.push(format!("{class}: {}", reasons.join(", ")));
        }
    }
    (!said.is_empty()).then(|| format!("settings of kube-proxy's that have no effect: {}", said.join("; ")))
}
