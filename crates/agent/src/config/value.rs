//! A single value of a document or a flag: checks its type, and converts it to a flag's spelling.

use serde_saphyr::Spanned;

use super::document::Value;
use super::table::Kind;
use crate::values;

/// A value in a flag's spelling: one word for each time that the flag is given.
pub(super) type Words = Vec<String>;

/// Reads a value of a document; `null` gives no words.
///
/// # Errors
/// It has another type; the error names the expected one.
pub(super) fn read(kind: Kind, value: &Value) -> Result<Words, String> {
    let one = |word: String| Ok(vec![word]);
    match (kind, value) {
        (_, Value::Null) => Ok(Vec::new()),
        (Kind::Text | Kind::TextOrOff | Kind::Quantity, Value::Text(text)) => one(text.clone()),
        // YAML reads `off` as false.
        (Kind::TextOrOff, Value::Bool(false)) => one("off".to_owned()),
        (Kind::Bool, Value::Bool(value)) => one(value.to_string()),
        (Kind::Int | Kind::Flush | Kind::Quantity, Value::Int(number)) => one(number.to_string()),
        (Kind::Float, Value::Int(number)) => one(number.to_string()),
        (Kind::Float, Value::Float(number)) => one(number.to_string()),
        (Kind::Duration | Kind::Flush, Value::Text(text)) => check(kind, text).map(|()| vec![text.clone()]),
        // A number is in seconds, as in the flags.
        (Kind::Duration, Value::Int(number)) => {
            let seconds = number.to_string();
            check(kind, &seconds).map(|()| vec![seconds])
        }
        (Kind::Numbers, Value::List(list)) => list.iter().map(number).collect(),
        (Kind::Texts, Value::List(list)) => list.iter().map(text).collect(),
        (Kind::Bools, Value::Map(map)) => map
            .iter()
            .map(|(name, value)| match &value.value {
                Value::Bool(value) => Ok(format!("{}={value}", name.value)),
                other => Err(format!("{} is {}, and is to be true or false", name.value, other.kind())),
            })
            .collect(),
        (Kind::Vmodule, Value::List(list)) => Ok(list.iter().map(|_| String::new()).collect()),
        (Kind::Text | Kind::TextOrOff, Value::List(list)) => Err(one_text(list)),
        (kind, other) => Err(format!("{} is to be {}", other.kind(), wanted(kind))),
    }
}

/// The error for a list in place of a text.
fn one_text(list: &[Spanned<Value>]) -> String {
    let texts: Result<Vec<String>, _> = list.iter().map(text).collect();
    let example = texts.map(|texts| format!(": {:?}", texts.join(","))).unwrap_or_default();
    format!("a list is to be one text, comma-separated{example}")
}

fn text(element: &Spanned<Value>) -> Result<String, String> {
    match &element.value {
        Value::Text(text) => Ok(text.clone()),
        other => Err(format!("each element is to be text, and one is {}", other.kind())),
    }
}

fn number(element: &Spanned<Value>) -> Result<String, String> {
    match &element.value {
        Value::Int(number) => Ok(number.to_string()),
        // An empty text is an empty list, as in the flag.
        Value::Text(text) if text.is_empty() || text.parse::<i64>().is_ok() => Ok(text.clone()),
        Value::Text(text) => Err(format!("each element is to be a whole number, and one is {text:?}")),
        other => Err(format!("each element is to be a whole number, and one is {}", other.kind())),
    }
}

/// Checks a value of a flag of kube-proxy.
///
/// # Errors
/// The value is not allowed; the error says what is.
pub(crate) fn check(kind: Kind, word: &str) -> Result<(), String> {
    let is_good = match kind {
        Kind::Bool => values::boolean(word).is_ok(),
        Kind::Int => word.parse::<i64>().is_ok(),
        Kind::Float => word.parse::<f32>().is_ok(),
        // Go accepts no number without a unit except 0; people mean seconds, and that does no harm.
        Kind::Duration | Kind::Flush => values::duration(word).is_ok(),
        Kind::Text
        | Kind::TextOrOff
        | Kind::Texts
        | Kind::Numbers
        | Kind::Bools
        | Kind::Quantity
        | Kind::Vmodule => true,
    };
    if is_good { Ok(()) } else { Err(format!("{word:?} is to be {}", wanted(kind))) }
}

/// Whether the value is kube-proxy's zero value, which documents have for everything that nobody has set.
pub(super) fn is_nothing(kind: Kind, words: &Words) -> bool {
    words.iter().all(|word| match kind {
        Kind::Duration | Kind::Flush => values::duration(word).is_ok_and(|duration| duration.is_zero()),
        Kind::Vmodule => false,
        Kind::Text | Kind::TextOrOff | Kind::Texts | Kind::Numbers => word.is_empty(),
        Kind::Bool | Kind::Int | Kind::Float | Kind::Bools | Kind::Quantity => {
            matches!(word.as_str(), "" | "false" | "0")
        }
    })
}

/// Whether two values mean the same.
pub(super) fn is_same(kind: Kind, one: &str, other: &str) -> bool {
    match kind {
        Kind::Duration | Kind::Flush => values::duration(one).ok() == values::duration(other).ok(),
        _ => one == other,
    }
}

fn wanted(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::TextOrOff => "text: write it in quotes",
        Kind::Bool => "true or false",
        Kind::Int => "a whole number",
        Kind::Float => "a number",
        Kind::Duration => "a duration, as \"30s\" or \"1h30m\", or a number of seconds",
        Kind::Texts => "a list of texts",
        Kind::Numbers => "a list of whole numbers",
        Kind::Bools => "a map of names to true or false",
        Kind::Flush => "a duration, as \"5s\", or a number of nanoseconds",
        Kind::Quantity => "a quantity, as \"64Ki\"",
        Kind::Vmodule => "a list of filePattern and verbosity",
    }
}
