//! The machine's ports that a container publishes (`-p`). As with the Python agent, those that are taken,
//! or outside of `agent.docker_args_allowed_port_range`, give way to free ones, and the task is told which.
//! Pure: what is taken is the caller's to know.

use std::collections::BTreeSet;

use serde_json::Value;

use super::run_args::Publication;

/// From which ports a free one is taken where no range is given.
const ELSEWHERE: Range = Range {
    first: 10_000,
    last: 59_999,
};

/// Ports, the last included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub first: u16,
    pub last: u16,
}

impl Range {
    /// `[9000, 10000]`; `None` where nothing is in it.
    pub fn read(value: &Value) -> Result<Option<Range>, String> {
        let why = || format!("{value} is no range of ports: expected [FIRST, LAST]");
        let Value::Array(numbers) = value else {
            return Err(why());
        };
        let number = |value: &Value| -> Option<u16> {
            let text = match value {
                Value::String(text) => text.trim().to_owned(),
                other => other.to_string(),
            };
            text.parse().ok().filter(|port| *port > 0)
        };
        let ports: Option<Vec<u16>> = numbers.iter().map(number).collect();
        let ports = ports.ok_or_else(why)?;
        Ok(match (ports.iter().min(), ports.iter().max()) {
            (Some(&first), Some(&last)) => Some(Range { first, last }),
            _ => None,
        })
    }

    fn holds(self, port: u32) -> bool {
        (u32::from(self.first)..=u32::from(self.last)).contains(&port)
    }
}

/// What became of the publications.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// For people, one for each that was moved.
    pub notes: Vec<String>,
    /// For the SDK: `10022:22,8000-8002:9000-9002`.
    pub mapping: String,
}

/// Ports that cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`-p {asked}`: there {} between {} and {}", no_free(*.count), .range.first, .range.last)]
pub struct NoneFree {
    asked: String,
    count: u32,
    range: Range,
}

fn no_free(count: u32) -> String {
    match count {
        1 => "is no free port".to_owned(),
        _ => format!("are no {count} free ports in a row"),
    }
}

/// Gives each publication of TCP ports such that are allowed and free. Other protocols' ports stay as they
/// are, and so do those that the engine is to choose, where it may choose any.
pub fn settle(
    publications: &mut [Publication],
    allowed: Option<Range>,
    is_taken: &dyn Fn(u32, &str) -> bool,
) -> Result<Settled, NoneFree> {
    let mut ours = BTreeSet::new();
    let mut settled = Settled::default();
    let mut mapping = Vec::new();
    for publication in publications {
        let asked = publication.to_string();
        if !publication.is_tcp() || (publication.outside().is_none() && allowed.is_none()) {
            continue;
        }
        let count = publication.count();
        let free = |port: u32| {
            allowed.is_none_or(|range| range.holds(port))
                && !ours.contains(&port)
                && !is_taken(port, publication.ip())
        };
        // One port of the container may have any of several.
        let wanted = publication.outside().and_then(|(first, last)| {
            (first..=(last + 1).saturating_sub(count))
                .find(|start| (*start..start + count).all(free))
        });
        let start = match wanted {
            Some(start) => start,
            None => {
                let range = allowed.unwrap_or(ELSEWHERE);
                let start = in_a_row(range, count, free).ok_or_else(|| NoneFree {
                    asked: asked.clone(),
                    count,
                    range,
                })?;
                let (start, last) = (start, start + count - 1);
                let why = match (publication.outside(), allowed) {
                    (None, _) => "any port will do".to_owned(),
                    (Some((from, to)), Some(range)) if !range.holds(from) || !range.holds(to) => {
                        format!(
                            "agent.docker_args_allowed_port_range is {} to {}",
                            range.first, range.last
                        )
                    }
                    _ => "that is taken on the engine's machine".to_owned(),
                };
                settled.notes.push(format!(
                    "-p {asked} gets {} of the machine: {why}",
                    shown("port", "ports", start, last)
                ));
                start
            }
        };
        ours.extend(start..start + count);
        publication.set_outside((start, start + count - 1));
        mapping.push(publication.mapping());
    }
    settled.mapping = mapping.join(",");
    Ok(settled)
}

fn in_a_row(range: Range, count: u32, free: impl Fn(u32) -> bool) -> Option<u32> {
    let (first, last) = (u32::from(range.first), u32::from(range.last));
    let mut start = first;
    let mut port = first;
    while port <= last {
        if !free(port) {
            start = port + 1;
        } else if port + 1 - start == count {
            return Some(start);
        }
        port += 1;
    }
    None
}

fn shown(one: &str, many: &str, first: u32, last: u32) -> String {
    match first == last {
        true => format!("{one} {first}"),
        false => format!("{many} {first} to {last}"),
    }
}

/// The ports that the engine's complaint about a taken port names, of those that were asked for.
pub fn named_in(complaint: &str, publications: &[Publication]) -> Vec<u32> {
    let numbers: BTreeSet<u32> = complaint
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect();
    publications
        .iter()
        .filter(|publication| publication.is_tcp())
        .filter_map(Publication::outside)
        .flat_map(|(first, last)| first..=last)
        .filter(|port| numbers.contains(port))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::run_args::RunArgs;
    use super::*;
    use serde_json::json;

    fn publications(texts: &[&str]) -> Vec<Publication> {
        let words: Vec<String> = texts.iter().map(|text| format!("-p{text}")).collect();
        RunArgs::parse(&words).unwrap().published().to_vec()
    }

    #[test]
    fn ports_that_cannot_be_had_give_way() {
        let range = Some(Range {
            first: 9000,
            last: 9010,
        });
        let taken = [80, 8081, 9000, 9003, 10_000];
        for (asked, allowed, bound, mapping) in [
            // Free and allowed: nothing is changed.
            (&["8080:80"][..], None, &["8080:80"][..], "8080:80"),
            (
                &["127.0.0.1:8080:80/tcp"],
                None,
                &["127.0.0.1:8080:80"],
                "8080:80",
            ),
            (&["9001:80"], range, &["9001:80"], "9001:80"),
            // Taken, or not allowed.
            (&["80:80"], None, &["10001:80"], "10001:80"),
            (
                &["127.0.0.1:80:8000"],
                None,
                &["127.0.0.1:10001:8000"],
                "10001:8000",
            ),
            (&["8080:80"], range, &["9001:80"], "9001:80"),
            (
                &["9000:22", "9000:80"],
                range,
                &["9001:22", "9002:80"],
                "9001:22,9002:80",
            ),
            // In a row.
            (
                &["8080-8082:90-92"],
                None,
                &["10001-10003:90-92"],
                "10001-10003:90-92",
            ),
            (
                &["9000-9002:90-92"],
                range,
                &["9004-9006:90-92"],
                "9004-9006:90-92",
            ),
            // The container's one port may have any of several.
            (&["8081-8083:80"], None, &["8082:80"], "8082:80"),
            // The engine's to choose, unless it may not choose any.
            (&["80"], None, &["80"], ""),
            (&["80"], range, &["9001:80"], "9001:80"),
            (&["90-91"], range, &["9001-9002:90-91"], "9001-9002:90-91"),
            // No business of the SDK's.
            (
                &["80:80/udp", "8080:80"],
                None,
                &["80:80/udp", "8080:80"],
                "8080:80",
            ),
        ] {
            let mut publications = publications(asked);
            let is_taken = |port: u32, _: &str| taken.contains(&port);
            let settled = settle(&mut publications, allowed, &is_taken).unwrap();
            let shown: Vec<String> = publications.iter().map(ToString::to_string).collect();
            assert_eq!(shown, bound, "{asked:?}");
            assert_eq!(settled.mapping, mapping, "{asked:?}");
            let moved = shown.iter().zip(asked).filter(|(now, then)| {
                then.trim_end_matches("/tcp") != now.as_str() && **then != "8081-8083:80"
            });
            assert_eq!(settled.notes.len(), moved.count(), "{:?}", settled.notes);
        }
        let mut many = publications(&["9000-9009:0-9"]);
        let is_taken = |port: u32, _: &str| taken.contains(&port);
        let error = settle(&mut many, range, &is_taken).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`-p 9000-9009:0-9`: there are no 10 free ports in a row between 9000 and 9010"
        );
    }

    #[test]
    fn port_0_is_any_that_is_free() {
        let range = Some(Range {
            first: 9000,
            last: 9010,
        });
        for (asked, allowed, bound) in [
            ("0:80", None, "80"),
            ("127.0.0.1:0:80", None, "127.0.0.1::80"),
            ("published=0,target=80", None, "80"),
            ("0:80", range, "9000:80"),
        ] {
            let mut publications = publications(&[asked]);
            let settled = settle(&mut publications, allowed, &|_, _| false).unwrap();
            assert_eq!(publications[0].to_string(), bound, "{asked}");
            assert_eq!(settled.mapping.is_empty(), allowed.is_none(), "{asked}");
        }
    }

    #[test]
    fn ranges_are_read() {
        let range = |first, last| Ok(Some(Range { first, last }));
        for (value, expected) in [
            (json!([9000, 10000]), range(9000, 10_000)),
            (json!(["10000", "9000"]), range(9000, 10_000)),
            (json!([]), Ok(None)),
        ] {
            assert_eq!(Range::read(&value), expected, "{value}");
        }
        for value in [
            json!("9000-10000"),
            json!([0, 5]),
            json!([9000, "x"]),
            json!([1, 70000]),
        ] {
            assert!(Range::read(&value).is_err(), "{value}");
        }
    }

    #[test]
    fn the_port_in_the_engines_complaint_is_found() {
        let asked = publications(&["8080:80", "8000-8002:90-92", "53:53/udp"]);
        for (complaint, expected) in [
            (
                "Bind for 0.0.0.0:8080 failed: port is already allocated",
                &[8080][..],
            ),
            (
                "failed to bind host port for 0.0.0.0:8001:172.17.0.2:91/tcp: address already in use",
                &[8001],
            ),
            ("listen udp 0.0.0.0:53: bind: address already in use", &[]),
        ] {
            assert_eq!(named_in(complaint, &asked), expected, "{complaint}");
        }
    }
}
