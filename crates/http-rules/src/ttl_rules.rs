//! Lifetimes that an operator sets by path.

use chunkcache_proto::v1::{FreshnessPolicy, TtlRule};

use crate::pattern::matches;

/// The policy for one path: the first rule that matches overrides the origin.
#[must_use]
pub fn policy_for(policy: FreshnessPolicy, rules: &[TtlRule], path: &str) -> FreshnessPolicy {
    let rule = rules
        .iter()
        .find(|rule| matches(rule.pattern.trim_start_matches('/'), path));
    match rule {
        Some(rule) => FreshnessPolicy {
            override_ttl_seconds: Some(rule.seconds),
            ..policy
        },
        None => policy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rule = |pattern: &str, seconds| TtlRule {
            pattern: pattern.to_owned(),
            seconds,
        };
        let rules = [rule("/live/*.m3u8", 2), rule("*.m3u8", 60)];
        let policy = FreshnessPolicy {
            default_ttl_seconds: Some(7),
            ..FreshnessPolicy::default()
        };
        let ttl = |path| policy_for(policy, &rules, path).override_ttl_seconds;
        assert_eq!(ttl("live/a.m3u8"), Some(2));
        assert_eq!(ttl("films/a.m3u8"), Some(60));
        assert_eq!(ttl("films/a.mp4"), None);
        assert_eq!(policy_for(policy, &rules, "x"), policy);
    }
}
