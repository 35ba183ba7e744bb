//! Which kept environments go when there are too many, they are too large, or the disk is full.

use std::time::SystemTime;

use super::settings::CacheSettings;

/// One kept environment, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    pub key: String,
    pub last: SystemTime,
    pub size: u64,
}

/// Those beyond the limits of number and size, the longest unused first. `coming`: how many are
/// about to be added.
pub fn beyond(entries: &[Used], settings: &CacheSettings, coming: usize) -> Vec<String> {
    let mut entries: Vec<&Used> = entries.iter().collect();
    entries.sort_by_key(|entry| entry.last);
    let mut count = entries.len() + coming;
    let mut size: u64 = entries.iter().map(|entry| entry.size).sum();
    let mut gone = Vec::new();
    for entry in entries {
        let too_many = settings.max_entries > 0 && count > settings.max_entries;
        let too_large = settings.max_size.is_some_and(|most| size > most);
        if !too_many && !too_large {
            break;
        }
        count -= 1;
        size -= entry.size;
        gone.push(entry.key.clone());
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_longest_unused_go_first() {
        let entry = |key: &str, age: u64, size: u64| Used {
            key: key.into(),
            last: SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age),
            size,
        };
        let entries = [
            entry("new", 1, 10),
            entry("old", 9, 30),
            entry("mid", 5, 20),
        ];
        type Case<'a> = (usize, Option<u64>, usize, &'a [&'a str]);
        let cases: [Case<'_>; 6] = [
            (10, None, 1, &[]),
            (3, None, 0, &[]),
            (3, None, 1, &["old"]),
            (1, None, 0, &["old", "mid"]),
            (0, None, 1, &[]),
            (10, Some(30), 0, &["old"]),
        ];
        for (max_entries, max_size, coming, gone) in cases {
            let settings = CacheSettings {
                max_entries,
                max_size,
                ..CacheSettings::at("/c".into())
            };
            assert_eq!(beyond(&entries, &settings, coming), gone);
        }
    }
}
