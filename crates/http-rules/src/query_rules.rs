//! Splits a query into the parameters that name an object and the others, by the source's rules.
//!
//! Players and trackers add parameters that mean nothing to an origin (`utm_source`, CMCD). If they
//! were part of the key, each viewer would have a separate object.

use std::borrow::Cow;

use chunkcache_proto::v1::KeyRules;

use crate::{
    pattern::matches,
    presigned::{self, PRESIGNED},
};

/// Players' reports (CTA-5004), which differ in each request.
const CMCD: &str = "CMCD";

/// The parts of a query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitQuery<'a> {
    /// Names the object.
    pub key: Cow<'a, str>,
    /// Does not name the object.
    pub ignored: String,
}

/// Splits a normalised query.
#[must_use]
pub fn split<'a>(query: &'a str, rules: &KeyRules) -> SplitQuery<'a> {
    if query.is_empty() {
        return SplitQuery::default();
    }
    let parameters = || query.split('&');
    let is_named = |parameter: &&str| !is_ignored(name_of(parameter), rules);
    if !rules.sort_query && parameters().all(|parameter| is_named(&parameter)) {
        return SplitQuery {
            key: Cow::Borrowed(query),
            ignored: String::new(),
        };
    }
    let (mut key, ignored): (Vec<&str>, Vec<&str>) = parameters().partition(is_named);
    if rules.sort_query {
        // Sort by name only, because the order of values of one name may be significant.
        key.sort_by_key(|parameter| name_of(parameter));
    }
    SplitQuery {
        key: Cow::Owned(key.join("&")),
        ignored: ignored.join("&"),
    }
}

/// The path as it appears in keys.
#[must_use]
pub fn fold_path<'a>(path: &'a str, rules: &KeyRules) -> Cow<'a, str> {
    if !rules.fold_path_case || !path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Borrowed(path);
    }
    let mut folded = String::with_capacity(path.len());
    // The digits of escapes stay upper-case, as in all normalised paths.
    let mut digits = 0;
    for character in path.chars() {
        if digits == 0 {
            folded.push(character.to_ascii_lowercase());
        } else {
            folded.push(character);
        }
        digits = if character == '%' {
            2
        } else {
            usize::saturating_sub(digits, 1)
        };
    }
    Cow::Owned(folded)
}

fn is_ignored(name: &str, rules: &KeyRules) -> bool {
    let among = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, name));
    if among(&rules.keep_query) {
        return false;
    }
    if !rules.only_query.is_empty() {
        return !among(&rules.only_query);
    }
    name == CMCD
        || rules.ignore_query.iter().any(|rule| match rule.as_str() {
            PRESIGNED => presigned::is_parameter(name),
            pattern => matches(pattern, name),
        })
}

pub(crate) fn name_of(parameter: &str) -> &str {
    parameter.split('=').next().unwrap_or(parameter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(ignore: &[&str], only: &[&str], keep: &[&str]) -> KeyRules {
        let owned = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
        KeyRules {
            ignore_query: owned(ignore),
            only_query: owned(only),
            keep_query: owned(keep),
            ..KeyRules::default()
        }
    }

    #[track_caller]
    fn check(rules: &KeyRules, query: &str, key: &str, ignored: &str) {
        let split = split(query, rules);
        assert_eq!((&*split.key, &*split.ignored), (key, ignored), "{query}");
    }

    #[test]
    fn without_rules_only_cmcd_is_left_out() {
        let none = KeyRules::default();
        check(&none, "", "", "");
        check(&none, "b=2&a=1&&c", "b=2&a=1&&c", "");
        check(&none, "a=1&CMCD=br%3D3200", "a=1", "CMCD=br%3D3200");
        check(&none, "CMCD=x", "", "CMCD=x");
        check(&rules(&[], &[], &["CMCD"]), "a=1&CMCD=x", "a=1&CMCD=x", "");
    }

    #[test]
    fn patterns_leave_out_and_exceptions_keep() {
        let utm = rules(&["utm_*", "session"], &[], &["utm_id"]);
        check(
            &utm,
            "utm_source=a&v=1&utm_id=2&session=x",
            "v=1&utm_id=2",
            "utm_source=a&session=x",
        );
        check(&utm, "session&sessions=1", "sessions=1", "session");
    }

    #[test]
    fn only_the_named_ones_count() {
        let only = rules(&["id"], &["id", "t*"], &[]);
        check(
            &only,
            "x=1&id=7&track=2&CMCD=y",
            "id=7&track=2",
            "x=1&CMCD=y",
        );
    }

    #[test]
    fn signatures_of_all_kinds_are_one_preset() {
        let presigned = rules(&[PRESIGNED], &[], &[]);
        check(
            &presigned,
            "v=1&X-Amz-Signature=s&X-Amz-Date=d&Key-Pair-Id=k&Signature=z&Expires=9&presigned=1",
            "v=1&presigned=1",
            "X-Amz-Signature=s&X-Amz-Date=d&Key-Pair-Id=k&Signature=z&Expires=9",
        );
    }

    #[test]
    fn sorted_by_name_and_stable() {
        let sorted = KeyRules {
            sort_query: true,
            ..KeyRules::default()
        };
        check(&sorted, "b=1&a=2&a=1", "a=2&a=1&b=1", "");
    }

    #[test]
    fn paths_fold_and_escapes_stay() {
        let fold = KeyRules {
            fold_path_case: true,
            ..KeyRules::default()
        };
        assert_eq!(fold_path("Films/A%C3%A9B.MP4", &fold), "films/a%C3%A9b.mp4");
        assert_eq!(fold_path("A", &KeyRules::default()), "A");
    }
}
