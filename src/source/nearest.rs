//! "Did you mean": names that look like the one that is not there.

/// Up to three of `candidates` that are close to `wanted`, closest first.
pub(super) fn nearest<'a>(
    wanted: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Vec<String> {
    let lower = wanted.to_lowercase();
    // Two letters that changed places are two edits.
    let length = lower.chars().count();
    let limit = (length / 3).max(if length > 3 { 2 } else { 1 });
    let mut close: Vec<(usize, &str)> = candidates
        .into_iter()
        .filter_map(|candidate| {
            let name = candidate.to_lowercase();
            let part_of = name.contains(&lower) || (name.len() > 2 && lower.contains(&name));
            let distance = distance(&lower, &name);
            match distance <= limit {
                true => Some((distance, candidate)),
                false => part_of.then_some((limit + distance, candidate)),
            }
        })
        .collect();
    close.sort();
    close.dedup();
    close
        .into_iter()
        .take(3)
        .map(|(_, name)| name.to_owned())
        .collect()
}

/// Edits (insertions, deletions, replacements) between two texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (to, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_come_first_and_strange_ones_not_at_all() {
        let names = ["main", "master", "feature/train", "Feature-X", "release"];
        assert_eq!(nearest("mian", names), ["main"]);
        assert_eq!(nearest("feature-x", names), ["Feature-X"]);
        assert_eq!(nearest("feature-train", names), ["feature/train"]);
        assert_eq!(nearest("rain", names), ["main", "feature/train"]);
        assert!(nearest("zzz", names).is_empty());
    }

    #[test]
    fn distances() {
        for (a, b, edits) in [
            ("", "", 0),
            ("a", "", 1),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }
}
