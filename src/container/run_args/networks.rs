//! `--network` in both its forms, and what belongs to the first network: aliases, links, addresses.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bollard::models::{EndpointIpamConfig, EndpointSettings};

use super::csv;
use super::error::RunArgsError;
use super::flags::Network;

/// What `--network` asks for: a network, or one of docker's modes (`host`, `none`, `bridge`,
/// `container:NAME`).
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Attachment {
    pub target: String,
    aliases: Vec<String>,
    links: Vec<String>,
    ipv4: Option<String>,
    ipv6: Option<String>,
    link_local: Vec<String>,
    mac: Option<String>,
    driver_options: HashMap<String, String>,
    pub gateway_priority: Option<i64>,
}

pub(super) fn attachment(text: &str) -> Result<Attachment, String> {
    let mut attachment = Attachment::default();
    if !is_long(text) {
        text.clone_into(&mut attachment.target);
        return match text.trim().is_empty() {
            true => Err("expected the name of a network".into()),
            false => Ok(attachment),
        };
    }
    for field in csv::fields(text)? {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("{field:?}: expected key=value"))?;
        let value = value.trim();
        match key.trim() {
            "name" => value.clone_into(&mut attachment.target),
            "alias" => attachment.aliases.push(value.to_owned()),
            "ip" => attachment.ipv4 = Some(ipv4(value)?),
            "ip6" => attachment.ipv6 = Some(ipv6(value)?),
            "mac-address" => attachment.mac = Some(mac(value)?),
            "link-local-ip" => attachment.link_local.push(address(value)?),
            "driver-opt" => {
                let (name, value) = value
                    .split_once('=')
                    .filter(|(name, _)| !name.is_empty())
                    .ok_or_else(|| format!("{field:?}: expected driver-opt=NAME=VALUE"))?;
                attachment
                    .driver_options
                    .insert(name.trim().to_owned(), value.trim().to_owned());
            }
            "gw-priority" => {
                let number = value.parse();
                attachment.gateway_priority =
                    Some(number.map_err(|_| format!("{field:?}: expected a whole number"))?);
            }
            key => return Err(format!("{key:?} is no key of it")),
        }
    }
    match attachment.target.is_empty() {
        true => Err("it has no name=NETWORK".into()),
        false => Ok(attachment),
    }
}

/// Whether this is the form with keys: a word, `=`, a word, somewhere in it.
fn is_long(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices('=')
        .any(|(at, _)| text[..at].ends_with(is_word) && text[at + 1..].starts_with(is_word))
}

impl Attachment {
    /// A network of the user's own, not one of docker's modes.
    fn is_user_defined(&self) -> bool {
        !matches!(self.target.as_str(), "default" | "bridge" | "host" | "none")
            && !self.target.starts_with("container:")
    }

    /// `None` where nothing is asked for but the network itself.
    fn endpoint(&self) -> Option<EndpointSettings> {
        let addresses = EndpointIpamConfig {
            ipv4_address: self.ipv4.clone(),
            ipv6_address: self.ipv6.clone(),
            link_local_ips: some(&self.link_local),
        };
        let settings = EndpointSettings {
            aliases: some(&self.aliases),
            links: some(&self.links),
            mac_address: self.mac.clone(),
            driver_opts: (!self.driver_options.is_empty()).then(|| self.driver_options.clone()),
            gw_priority: self.gateway_priority,
            ipam_config: (addresses != EndpointIpamConfig::default()).then_some(addresses),
            ..EndpointSettings::default()
        };
        (settings != EndpointSettings::default()).then_some(settings)
    }
}

fn some(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

/// The networks in order, each with what is asked of it. With none, the engine's default one.
pub(super) fn all(
    flags: &Network,
) -> Result<Vec<(String, Option<EndpointSettings>)>, RunArgsError> {
    let mut networks = flags.network.clone();
    if networks.is_empty() {
        networks.push(Attachment {
            target: "default".into(),
            ..Attachment::default()
        });
    }
    apply(&mut networks[0], flags)?;
    let user_defined = networks.iter().filter(|net| net.is_user_defined()).count();
    if user_defined != 0 && user_defined != networks.len() {
        return Err(RunArgsError::Conflict {
            flag: "--network",
            other: "--network",
            why: "a container that is in a network of its own can't have a mode like host too",
        });
    }
    let mut all: Vec<(String, Option<EndpointSettings>)> = Vec::new();
    for network in networks {
        if !network.is_user_defined() && !network.aliases.is_empty() {
            return Err(RunArgsError::Conflict {
                flag: "--network",
                other: "--network-alias",
                why: "aliases are for networks that were made with `docker network create`",
            });
        }
        if all.iter().any(|(name, _)| *name == network.target) {
            return Err(RunArgsError::bad(
                "--network",
                &network.target,
                "the same network twice",
            ));
        }
        let endpoint = network.endpoint();
        all.push((network.target, endpoint));
    }
    Ok(all)
}

/// `--network-alias`, `--ip` and their like are about the first network.
fn apply(first: &mut Attachment, flags: &Network) -> Result<(), RunArgsError> {
    let twice = |flag| {
        Err(RunArgsError::Conflict {
            flag,
            other: "--network",
            why: "both say it; keep one",
        })
    };
    let is_user_defined = first.is_user_defined();
    let list = |flag, values: &[String], into: &mut Vec<String>| match (values, &into) {
        ([], _) => Ok(()),
        (_, into) if !into.is_empty() => twice(flag),
        _ => {
            *into = values.to_vec();
            Ok(())
        }
    };
    list("--network-alias", &flags.network_alias, &mut first.aliases)?;
    list(
        "--link-local-ip",
        &flags.link_local_ip,
        &mut first.link_local,
    )?;
    // In the default bridge links are the container's own.
    if is_user_defined {
        list("--link", &flags.link, &mut first.links)?;
    }
    let one = |flag, value: &Option<String>, into: &mut Option<String>| match (value, &into) {
        (None, _) => Ok(()),
        (_, Some(_)) => twice(flag),
        (value, None) => {
            into.clone_from(value);
            Ok(())
        }
    };
    one("--ip", &flags.ip, &mut first.ipv4)?;
    one("--ip6", &flags.ip6, &mut first.ipv6)?;
    one("--mac-address", &flags.mac_address, &mut first.mac)
}

pub(super) fn ipv4(text: &str) -> Result<String, String> {
    match text.parse::<Ipv4Addr>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected an IPv4 address".into()),
    }
}

pub(super) fn ipv6(text: &str) -> Result<String, String> {
    match text.parse::<Ipv6Addr>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected an IPv6 address".into()),
    }
}

pub(super) fn address(text: &str) -> Result<String, String> {
    match text.trim().parse::<IpAddr>() {
        Ok(address) => Ok(address.to_string()),
        Err(_) => Err("expected an IP address".into()),
    }
}

pub(super) fn mac(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.trim().split([':', '-']).collect();
    let hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
    match matches!(parts.len(), 6 | 8 | 20) && parts.iter().all(hex) {
        true => Ok(text.to_owned()),
        false => Err("expected a MAC address, like 92:d0:c6:0a:29:33".into()),
    }
}

pub(super) fn link(text: &str) -> Result<String, String> {
    match text.is_empty() || text.matches(':').count() > 1 {
        true => Err("expected CONTAINER or CONTAINER:ALIAS".into()),
        false => Ok(text.to_owned()),
    }
}

/// `--add-host`: `NAME:ADDRESS` or `NAME=ADDRESS`, an IPv6 address with or without `[ ]`.
pub(super) fn host(text: &str) -> Result<String, String> {
    let wrong = || "expected NAME:ADDRESS, where ADDRESS may be host-gateway".to_owned();
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .ok_or_else(wrong)?;
    if name.is_empty() || name.contains(':') {
        return Err(wrong());
    }
    let bare = address
        .strip_prefix('[')
        .and_then(|address| address.strip_suffix(']'))
        .unwrap_or(address);
    match bare == "host-gateway" || bare.trim().parse::<IpAddr>().is_ok() {
        true => Ok(format!("{name}:{bare}")),
        false => Err(wrong()),
    }
}

/// `--dns-search`; `.` is for none.
pub(super) fn search_domain(text: &str) -> Result<String, String> {
    let wrong = || "expected the name of a domain, or a dot for none".to_owned();
    let text = text.trim_matches(' ');
    if text == "." {
        return Ok(text.to_owned());
    }
    let name = text.trim_end();
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |part: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric();
        part.bytes().all(|b| plain(b) || b == b'-')
            && part.bytes().next().is_some_and(plain)
            && part.bytes().last().is_some_and(plain)
    };
    match name.len() < 255
        && name.split('.').all(label)
        && name.bytes().any(|b| b.is_ascii_alphabetic())
    {
        true => Ok(name.to_owned()),
        false => Err(wrong()),
    }
}
