//! The ports that the container publishes: what is taken on the engine's machine, and what the task is told
//! (by the names that the Python agent and the SDK use).

use std::collections::BTreeSet;
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs as _, UdpSocket,
};

use bollard::models::PortSummaryTypeEnum;
use url::Url;

use super::super::container_plan::Plan;
use super::super::run::Run;
use crate::container::engine::Engine;
use crate::container::error::ContainerError;
use crate::container::ports::{self, Range};
use crate::container::run_args::Publication;
use crate::container::settings::Settings;

/// The key of the task's runtime by which the SDK knows where a port of the container is reached.
const MAPPING: &str = "_external_host_tcp_port_mapping";
/// How often another port is tried where one is taken after all.
const ATTEMPTS: usize = 5;

/// A container's wishes, and what is known to be taken.
pub(super) struct Ports {
    asked: Vec<Publication>,
    allowed: Option<Range>,
    taken: BTreeSet<u32>,
    /// The engine's machine is this one.
    is_local: bool,
    host_ip: Option<String>,
    attempts: usize,
}

impl Ports {
    /// `None` where nothing is published.
    pub async fn look(
        run: &Run,
        settings: &Settings,
        plan: &Plan,
        engine: &Engine,
    ) -> Option<Ports> {
        let asked = plan.arguments.published().to_vec();
        if !asked.iter().any(Publication::is_tcp) || plan.arguments.has_network_of_host() {
            return None;
        }
        let host = settings.host_ip.clone();
        let ping = settings.public_ip_ping.clone();
        let (machine, server) = (
            engine.machine().map(str::to_owned),
            run.settings.endpoint.api_server.clone(),
        );
        // It may have to ask for names.
        let looking = tokio::task::spawn_blocking(move || {
            host.or_else(|| ip_of(machine.as_deref(), &ping, &server))
        });
        let (host_ip, taken) = tokio::join!(looking, of_containers(engine));
        Some(Ports {
            asked,
            allowed: settings.ports,
            taken,
            is_local: engine.is_local(),
            host_ip: host_ip.ok().flatten(),
            attempts: 0,
        })
    }

    pub fn host_ip(&self) -> Option<&str> {
        self.host_ip.as_deref()
    }

    /// Changes the plan to ports that can be had, and tells the task.
    pub async fn settle(&self, run: &Run, plan: &mut Plan) -> Result<(), ContainerError> {
        let mut publications = self.asked.clone();
        let is_taken = |port: u32, ip: &str| {
            self.taken.contains(&port) || (self.is_local && is_in_use(port, ip))
        };
        let settled =
            ports::settle(&mut publications, self.allowed, &is_taken).map_err(|error| {
                ContainerError::PortTaken {
                    cause: error.to_string(),
                }
            })?;
        for note in &settled.notes {
            run.console.say(format!("Note: {note}"));
        }
        plan.arguments.publish_as(publications, &mut plan.body)?;
        // Others have ports of their own on their machines; the task has one answer.
        if run.settings.rank == 0 && !settled.mapping.is_empty() {
            let more = [(MAPPING, settled.mapping.as_str())];
            let told = run.runtime.add(&more);
            let told = tokio::select! {
                told = told => told,
                _ = run.stop.requested() => return Err(ContainerError::Stopped),
            };
            if let Err(error) = told {
                run.console.say(format!(
                    "Note: the task is not told where its ports are reached: {error}"
                ));
            }
        }
        Ok(())
    }

    /// Takes the engine's complaint into account; says whether another attempt is worth it.
    pub fn learn(&mut self, complaint: &str, plan: &Plan) -> bool {
        self.attempts += 1;
        let named = ports::named_in(complaint, plan.arguments.published());
        let known = self.taken.len();
        self.taken.extend(named);
        self.taken.len() > known && self.attempts < ATTEMPTS
    }
}

/// Those that other containers have: not all engines hold a socket for each.
async fn of_containers(engine: &Engine) -> BTreeSet<u32> {
    let listed = engine.docker().list_containers(None).await;
    let listed = listed.inspect_err(|error| tracing::debug!(%error, "ports of other containers"));
    let ports = listed
        .into_iter()
        .flatten()
        .flat_map(|c| c.ports.unwrap_or_default());
    ports
        .filter(|port| matches!(port.typ, None | Some(PortSummaryTypeEnum::TCP)))
        .filter_map(|port| port.public_port.map(u32::from))
        .collect()
}

/// Whether something listens on that port of this machine.
fn is_in_use(port: u32, ip: &str) -> bool {
    let Ok(port) = u16::try_from(port) else {
        return false;
    };
    let addresses: Vec<IpAddr> = match ip.parse() {
        Ok(ip) => vec![ip],
        Err(_) => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    };
    // What else may be wrong (an address of another machine, a port that only root may have), the
    // engine knows better.
    addresses.into_iter().any(|ip| {
        TcpListener::bind(SocketAddr::new(ip, port))
            .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    })
}

/// The address by which others reach the engine's machine.
fn ip_of(machine: Option<&str>, ping: &str, server: &Url) -> Option<String> {
    if let Some(machine) = machine {
        let found = (machine, 0).to_socket_addrs().ok()?.next()?;
        return Some(found.ip().to_string());
    }
    let others = [Some(ping), server.host_str()];
    let own = others.into_iter().flatten().find_map(own_ip);
    own.map(|ip| ip.to_string())
}

/// From which of its addresses this machine would speak to `other`; nothing is sent.
fn own_ip(other: &str) -> Option<IpAddr> {
    let other = (other.trim_start_matches('[').trim_end_matches(']'), 9);
    let other = other.to_socket_addrs().ok()?.next()?;
    let any: IpAddr = match other {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(other).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}
