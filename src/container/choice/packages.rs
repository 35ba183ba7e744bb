//! Whether a task's package list goes with a rule's versions: `torch: ">=2.0"`.

use std::cmp::Ordering;

use crate::python::requirements::normalise;

/// Whether `list` names the package in a version that may be one of `versions`.
pub(super) fn may_hold(list: &str, package: &str, versions: &str) -> bool {
    let wanted = Range::of(versions);
    list.lines().any(|line| {
        let line = line
            .split(['#', ';', '@'])
            .next()
            .unwrap_or_default()
            .trim();
        let end = line.find(|c: char| !(c.is_alphanumeric() || "-_.".contains(c)));
        let (name, rest) = line.split_at(end.unwrap_or(line.len()));
        // `torch[extra]==1`
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((_, rest)) => rest,
            None => rest,
        };
        !name.is_empty() && normalise(name) == normalise(package) && Range::of(rest).meets(&wanted)
    })
}

/// Versions between two ends; the flag says whether the end itself is among them.
#[derive(Debug, Default)]
struct Range {
    from: Option<(Vec<u64>, bool)>,
    to: Option<(Vec<u64>, bool)>,
}

impl Range {
    /// From `==1.2`, `>=1.0,<2`, `~=1.4.2`. What is none of these (`!=1.3`) takes nothing away.
    fn of(specifiers: &str) -> Range {
        let mut range = Range::default();
        for specifier in specifiers.split(',').map(str::trim) {
            let end = specifier.find(|c: char| !"=<>~!".contains(c));
            let (operator, version) = specifier.split_at(end.unwrap_or(specifier.len()));
            let is_prefix = version.trim_end().ends_with(".*");
            let version = numbers(version);
            if version.is_empty() {
                continue;
            }
            match operator {
                ">" => range.from = Some((version, false)),
                ">=" => range.from = Some((version, true)),
                "<" => range.to = Some((version, false)),
                "<=" => range.to = Some((version, true)),
                "==" if is_prefix => {
                    range.to = Some((next(&version), false));
                    range.from = Some((version, true));
                }
                // A rule may name a version alone.
                "==" | "===" | "" => {
                    range.to = Some((version.clone(), true));
                    range.from = Some((version, true));
                }
                "~=" if version.len() > 1 => {
                    range.to = Some((next(&version[..version.len() - 1]), false));
                    range.from = Some((version, true));
                }
                _ => {}
            }
        }
        range
    }

    fn meets(&self, other: &Range) -> bool {
        self.begins_before_end_of(other) && other.begins_before_end_of(self)
    }

    fn begins_before_end_of(&self, other: &Range) -> bool {
        match (&self.from, &other.to) {
            (Some((from, from_in)), Some((to, to_in))) => match compare(from, to) {
                Ordering::Less => true,
                Ordering::Equal => *from_in && *to_in,
                Ordering::Greater => false,
            },
            _ => true,
        }
    }
}

/// `1.4` → the first version that is no `1.4.…`.
fn next(version: &[u64]) -> Vec<u64> {
    let mut next = version.to_vec();
    if let Some(last) = next.last_mut() {
        *last = last.saturating_add(1);
    }
    next
}

/// The numbers at the front: `2.1.0+cu118` → 2, 1, 0.
fn numbers(version: &str) -> Vec<u64> {
    version
        .trim()
        .trim_start_matches('v')
        .split('.')
        .map_while(|part| {
            let end = part.find(|c: char| !c.is_ascii_digit());
            part[..end.unwrap_or(part.len())].parse().ok()
        })
        .collect()
}

fn compare(a: &[u64], b: &[u64]) -> Ordering {
    let at = |version: &[u64], i: usize| version.get(i).copied().unwrap_or(0);
    (0..a.len().max(b.len()))
        .map(|i| at(a, i).cmp(&at(b, i)))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::may_hold;

    #[test]
    fn versions_that_may_be_the_same() {
        let list =
            "numpy\ntorch[extra] == 2.1.0+cu118 ; python_version > '3'\nTensor_Flow>=2.3,<3\n";
        for (package, versions, expected) in [
            ("torch", ">=2", true),
            ("torch", "~=2.0", true),
            ("torch", "~=2.0.0", false),
            ("torch", "==2.1.*", true),
            ("torch", "<2.1", false),
            ("torch", "2.1", true),
            ("torch", "", true),
            ("tensor-flow", "~=2.4", true),
            ("tensor.flow", "<=2.3", true),
            ("tensor.flow", "<2.3", false),
            ("tensor-flow", ">=3", false),
            ("numpy", "==1.0", true),
            ("num", "", false),
        ] {
            assert_eq!(
                may_hold(list, package, versions),
                expected,
                "{package} {versions}"
            );
        }
    }
}
