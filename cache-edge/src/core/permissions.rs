//! Signatures that an origin accepted, each for one object until it expires.
//!
//! Bounded: the oldest are forgotten first, and the origin is asked about them again.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// The maximum number of signatures remembered, and their maximum size.
const MAX_NUMBER: usize = 64 << 10;
const MAX_BYTES: usize = 32 << 20;
/// The longest signature that is accepted. Those of temporary credentials take about 2 KiB.
pub const MAX_SIGNATURE_BYTES: usize = 8 << 10;
/// Size of a permission without its texts.
const PERMISSION_BYTES: usize = 256;

/// The permissions of all sources.
#[derive(Debug)]
pub struct Permissions {
    max_number: usize,
    max_bytes: usize,
    by_object: HashMap<Arc<str>, OfObject>,
    /// The oldest first. A signature that was given again is listed with the number of its last
    /// time.
    order: VecDeque<(u64, Arc<str>, Arc<str>)>,
    number: usize,
    bytes: usize,
    given: u64,
    forgotten: u64,
}

#[derive(Debug, Default)]
struct OfObject {
    by_signature: HashMap<Arc<str>, Permission>,
    /// The signature that is valid for the longest time.
    longest: Option<(i64, Arc<str>)>,
}

#[derive(Clone, Copy, Debug)]
struct Permission {
    number: u64,
    until_ms: i64,
}

impl Default for Permissions {
    fn default() -> Self {
        Self::new(MAX_NUMBER, MAX_BYTES)
    }
}

impl Permissions {
    fn new(max_number: usize, max_bytes: usize) -> Self {
        Self {
            max_number,
            max_bytes,
            by_object: HashMap::new(),
            order: VecDeque::new(),
            number: 0,
            bytes: 0,
            given: 0,
            forgotten: 0,
        }
    }

    /// Remembers that a signature is valid for an object until then.
    pub fn give(&mut self, object: &str, signature: &str, until_ms: i64) {
        self.remove(object, signature);
        self.given += 1;
        let number = self.given;
        let object: Arc<str> = match self.by_object.get_key_value(object) {
            Some((object, _)) => object.clone(),
            None => object.into(),
        };
        let signature: Arc<str> = signature.into();
        self.number += 1;
        self.bytes += weigh(&object, &signature);
        let of_object = self.by_object.entry(object.clone()).or_default();
        let permission = Permission { number, until_ms };
        of_object.by_signature.insert(signature.clone(), permission);
        if of_object
            .longest
            .as_ref()
            .is_none_or(|(it, _)| *it <= until_ms)
        {
            of_object.longest = Some((until_ms, signature.clone()));
        }
        self.order.push_back((number, object, signature));
        while self.order.len() > self.max_number || self.bytes > self.max_bytes {
            self.forget_oldest();
        }
    }

    /// Until when a signature is valid for an object; `None`: not known.
    #[must_use]
    pub fn until(&self, object: &str, signature: &str, now_ms: i64) -> Option<i64> {
        let permission = self.by_object.get(object)?.by_signature.get(signature)?;
        (permission.until_ms > now_ms).then_some(permission.until_ms)
    }

    /// A signature for an object: the one that is valid for the longest time.
    #[must_use]
    pub fn any(&self, object: &str, now_ms: i64) -> Option<Arc<str>> {
        let (until_ms, signature) = self.by_object.get(object)?.longest.as_ref()?;
        (*until_ms > now_ms).then(|| signature.clone())
    }

    /// Forgets a signature that is no longer accepted.
    pub fn take_back(&mut self, object: &str, signature: &str) {
        self.remove(object, signature);
    }

    /// Number of permissions, and their size.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.number, self.bytes)
    }

    /// How many were forgotten to make space, before they expired or were given again.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn forget_oldest(&mut self) {
        let Some((number, object, signature)) = self.order.pop_front() else {
            return;
        };
        let of_object = self.by_object.get(&object);
        let present = of_object.and_then(|it| it.by_signature.get(&signature));
        if present.is_some_and(|present| present.number == number) {
            self.remove(&object, &signature);
            self.forgotten += 1;
        }
    }

    fn remove(&mut self, object: &str, signature: &str) {
        let Some(of_object) = self.by_object.get_mut(object) else {
            return;
        };
        if of_object.by_signature.remove(signature).is_none() {
            return;
        }
        self.number -= 1;
        self.bytes -= weigh(object, signature);
        if of_object.by_signature.is_empty() {
            self.by_object.remove(object);
        } else if of_object
            .longest
            .as_ref()
            .is_some_and(|(_, longest)| **longest == *signature)
        {
            let rest = of_object.by_signature.iter();
            let longest = rest.max_by_key(|(_, permission)| permission.until_ms);
            of_object.longest = longest.map(|(it, permission)| (permission.until_ms, it.clone()));
        }
    }
}

fn weigh(object: &str, signature: &str) -> usize {
    PERMISSION_BYTES + object.len() + signature.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_good_for_its_object_until_it_expires() {
        let mut permissions = Permissions::default();
        permissions.give("a", "s1", 100);
        permissions.give("a", "s2", 200);
        assert_eq!(permissions.until("a", "s1", 99), Some(100));
        assert_eq!(permissions.until("a", "s1", 100), None);
        assert_eq!(permissions.until("b", "s1", 0), None);
        assert_eq!(permissions.any("a", 0).as_deref(), Some("s2"));
        assert_eq!(permissions.any("a", 200), None);
        permissions.give("a", "s1", 300);
        assert_eq!(permissions.any("a", 200).as_deref(), Some("s1"));
        // One that is given again with a shorter time.
        permissions.give("a", "s1", 150);
        assert_eq!(permissions.any("a", 160).as_deref(), Some("s2"));
    }

    #[test]
    fn one_that_was_taken_back_is_good_for_nothing() {
        let mut permissions = Permissions::new(2, usize::MAX);
        permissions.give("a", "s1", 100);
        permissions.give("a", "s2", 200);
        permissions.take_back("a", "s2");
        permissions.take_back("a", "never-given");
        assert_eq!(permissions.until("a", "s2", 0), None);
        assert_eq!(permissions.any("a", 0).as_deref(), Some("s1"));
        assert_eq!(permissions.size(), (1, weigh("a", "s1")));
        permissions.take_back("a", "s1");
        assert_eq!(
            (permissions.any("a", 0), permissions.size()),
            (None, (0, 0))
        );
        permissions.give("b", "s", 9);
        permissions.give("c", "s", 9);
        assert_eq!((permissions.size().0, permissions.forgotten()), (2, 0));
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let mut permissions = Permissions::new(4, usize::MAX);
        permissions.give("a", "s", 9);
        permissions.give("b", "s", 9);
        permissions.give("a", "s", 9);
        permissions.give("c", "s", 9);
        assert_eq!(permissions.forgotten(), 0);
        // One that was given again is not the oldest.
        permissions.give("d", "s", 9);
        permissions.give("e", "s", 9);
        assert_eq!(permissions.until("a", "s", 0), Some(9));
        assert_eq!(permissions.until("b", "s", 0), None);
        assert_eq!((permissions.forgotten(), permissions.size().0), (1, 4));
    }

    #[test]
    fn the_bytes_are_those_of_the_rest() {
        let most = 3 * (PERMISSION_BYTES + 10);
        let mut permissions = Permissions::new(usize::MAX, most);
        for number in 1..100 {
            permissions.give("a", &format!("{number:09}"), number);
        }
        assert_eq!(permissions.size(), (3, most));
        let long = "s".repeat(most - PERMISSION_BYTES - 1);
        permissions.give("b", &long, 1);
        assert_eq!(permissions.size(), (1, most));
        assert_eq!(permissions.any("a", 0), None);
        permissions.give("b", &format!("{long}s"), 1);
        assert_eq!(permissions.size(), (0, 0), "too long for any space");
    }
}
