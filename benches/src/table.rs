//! Formats figures for tables.

/// Three significant digits, with separators for thousands.
pub fn figure(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(
            [1.234, 12.34, 123.4, 12_345.6, 1_234_567.0].map(figure),
            ["1.23", "12.3", "123", "12,346", "1,234,567"]
        );
    }
}
