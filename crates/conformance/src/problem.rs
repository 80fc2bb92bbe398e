//! Saying why a promise was not seen kept.

use std::collections::BTreeSet;

use e2b_client::Problem;
use serde_json::Value;

/// Fails a check with what was seen, unless `kept`.
pub(crate) fn require(kept: bool, seen: impl FnOnce() -> String) -> Result<(), Problem> {
    if kept {
        Ok(())
    } else {
        Err(Problem::Broken(seen()))
    }
}

/// Entries of two objects that differ, the first few of them; both as a whole when they are none.
pub(crate) fn difference(was: &Value, is: &Value) -> String {
    const TOLD: usize = 3;
    let (Some(old), Some(new)) = (was.as_object(), is.as_object()) else {
        return format!("was {was}, is {is}");
    };
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let keys = keys
        .into_iter()
        .filter(|key| old.get(*key) != new.get(*key));
    let tell = |value: Option<&Value>| value.map_or("missing".to_owned(), Value::to_string);
    let mut told: Vec<String> = keys
        .map(|key| {
            format!(
                "'{key}' was {}, is {}",
                tell(old.get(key)),
                tell(new.get(key))
            )
        })
        .collect();
    let more = told.len().saturating_sub(TOLD);
    told.truncate(TOLD);
    if more > 0 {
        told.push(format!("and {more} more differences"));
    }
    told.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_names_what_is_missing_new_or_changed() {
        let was = json!({"a": 1, "b": 2, "c": 3});
        assert_eq!(
            difference(&was, &json!({"a": 1, "b": 5, "d": 4})),
            "'b' was 2, is 5; 'c' was 3, is missing; 'd' was missing, is 4"
        );
        assert_eq!(difference(&json!(1), &json!(2)), "was 1, is 2");
        let none = difference(&was, &json!({}));
        assert!(none.starts_with("'a' was 1, is missing"), "{none}");
        let many: serde_json::Map<_, _> = (0..5).map(|n| (n.to_string(), json!(n))).collect();
        let text = difference(&json!(many), &json!({}));
        assert!(text.ends_with("; and 2 more differences"), "{text}");
    }
}
