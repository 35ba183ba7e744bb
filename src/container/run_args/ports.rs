//! `--publish` and `--expose`: ports of the container, and where they are reached from outside.

use std::net::IpAddr;

use bollard::models::PortBinding;

/// A port of the container, as `80/tcp`.
pub(super) type Port = String;

/// `--publish`: ports of the container with where they are bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    ip: String,
    /// Ports of the host, the first and the last; any free ones where there are none.
    outside: Option<(u32, u32)>,
    inside: (u32, u32),
    protocol: String,
}

/// `--expose`: ports that the container says it listens to, the first and the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exposed {
    ports: (u32, u32),
    protocol: String,
}

impl Publication {
    /// How many ports of the container.
    pub fn count(&self) -> u32 {
        self.inside.1 - self.inside.0 + 1
    }

    /// The address of the host; all of them where it is empty.
    pub fn ip(&self) -> &str {
        &self.ip
    }

    pub fn is_tcp(&self) -> bool {
        self.protocol == "tcp"
    }

    /// Ports of the host, the first and the last; `None`: any free ones.
    pub fn outside(&self) -> Option<(u32, u32)> {
        self.outside
    }

    pub fn set_outside(&mut self, ports: (u32, u32)) {
        self.outside = Some(ports);
    }

    /// `HOST:CONTAINER`, each a port or a range.
    pub fn mapping(&self) -> String {
        let inside = shown(self.inside);
        match self.outside {
            Some(outside) => format!("{}:{inside}", shown(outside)),
            None => inside,
        }
    }

    /// Each port of the container with where it is bound.
    pub(super) fn bindings(&self) -> impl Iterator<Item = (Port, PortBinding)> {
        (0..self.count()).map(|i| {
            let host_port = match self.outside {
                None => String::new(),
                // One port of the container: the engine takes a free one of the range.
                Some((first, last)) if self.count() == 1 && first != last => {
                    format!("{first}-{last}")
                }
                Some((first, _)) => (first + i).to_string(),
            };
            let binding = PortBinding {
                host_ip: Some(self.ip.clone()),
                host_port: Some(host_port),
            };
            (format!("{}/{}", self.inside.0 + i, self.protocol), binding)
        })
    }
}

fn shown((first, last): (u32, u32)) -> String {
    match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    }
}

/// As `-p` has it.
impl std::fmt::Display for Publication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.ip.is_empty(), self.ip.contains(':')) {
            (true, _) => {}
            (false, false) => write!(f, "{}:", self.ip)?,
            (false, true) => write!(f, "[{}]:", self.ip)?,
        }
        if !self.ip.is_empty() && self.outside.is_none() {
            f.write_str(":")?;
        }
        f.write_str(&self.mapping())?;
        match self.is_tcp() {
            true => Ok(()),
            false => write!(f, "/{}", self.protocol),
        }
    }
}

impl Exposed {
    pub fn ports(&self) -> impl Iterator<Item = Port> {
        (self.ports.0..=self.ports.1).map(|port| format!("{port}/{}", self.protocol))
    }
}

pub(super) fn publication(text: &str) -> Result<Publication, String> {
    let short = match text.contains('=') {
        true => from_keys(text)?,
        false => text.to_owned(),
    };
    let (front, container) = short.rsplit_once(':').unwrap_or(("", &short));
    let (ip, host) = front.rsplit_once(':').unwrap_or(("", front));
    let (container, protocol) = protocol_of(container)?;
    let ip = ip
        .strip_prefix('[')
        .map_or(Some(ip), |ip| ip.strip_suffix(']'));
    let ip = ip.ok_or("an address in [ ] is not closed")?;
    if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
        return Err(format!("{ip:?} is no IP address"));
    }
    if container.is_empty() {
        return Err("it names no port of the container".into());
    }
    let inside = range(container)?;
    let outside = match host {
        "" => None,
        host => Some(range(host)?),
    };
    if let Some((first, last)) = outside
        && last - first != inside.1 - inside.0
        && inside.0 != inside.1
    {
        return Err(format!(
            "{host} and {container} are not the same number of ports"
        ));
    }
    Ok(Publication {
        ip: ip.to_owned(),
        // For docker, port 0 is any that is free.
        outside: outside.filter(|ports| *ports != (0, 0)),
        inside,
        protocol,
    })
}

/// `published=8080,target=80,protocol=tcp` in the short form.
fn from_keys(text: &str) -> Result<String, String> {
    let (mut published, mut target, mut protocol) = ("", "", "tcp");
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("published", value)) => published = value,
            Some(("target", value)) => target = value,
            Some(("protocol", value)) => protocol = value,
            // Docker's client leaves other keys out without a word.
            Some(("mode" | "app_protocol" | "name", _)) => {}
            _ => {
                return Err(format!(
                    "{field:?}: expected published=PORT, target=PORT or protocol=NAME"
                ));
            }
        }
    }
    Ok(format!("{published}:{target}/{protocol}"))
}

pub(super) fn exposed(text: &str) -> Result<Exposed, String> {
    if text.contains(':') {
        return Err("a port that is exposed has no port of the host; see --publish".into());
    }
    let (ports, protocol) = protocol_of(text)?;
    Ok(Exposed {
        ports: range(ports)?,
        protocol,
    })
}

fn protocol_of(text: &str) -> Result<(&str, String), String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    match protocol.to_lowercase().as_str() {
        "" => Ok((ports, "tcp".into())),
        known @ ("tcp" | "udp" | "sctp") => Ok((ports, known.to_owned())),
        _ => Err(format!("{protocol:?}: expected tcp, udp or sctp")),
    }
}

fn range(text: &str) -> Result<(u32, u32), String> {
    let wrong = || format!("{text:?} is no port and no range of ports");
    let port = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse::<u16>().map(u32::from).map_err(|_| wrong()),
        false => Err(wrong()),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    match first <= last {
        true => Ok((first, last)),
        false => Err(format!("{text:?} ends before it begins")),
    }
}
