//! `clearml-agent server`: a small ClearML-compatible API server with a file store, for trials,
//! tests and CI where there is no ClearML deployment. It has the real server's endpoints, state
//! machine, error codes and shapes, as far as the agent and the Python SDK use them; it has one
//! user, and no web page.
//!
//! A request goes through `http` (credentials, envelope) to a row of a service's endpoint table,
//! which runs in one transaction of `store`.

mod auth;
mod call;
pub mod demo;
mod document;
mod events;
mod files;
mod http;
mod models;
mod organization;
mod projects;
mod query;
mod queues;
mod refusal;
mod state;
mod store;
mod tasks;
mod workers;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;

pub use auth::KeyPair;
use auth::Keys;
use files::FileStore;
use http::App;
use refusal::Refusal;
use store::Store;

/// The version of the API that is served, and of the real server that serves it so.
const API_VERSION: &str = "2.31";
const SERVER_VERSION: &str = "2.0.0";
/// The one company and user.
const COMPANY: &str = "d1bd92a3b039400cbafc60a7a5b1e52b";
const COMPANY_NAME: &str = "clearml";
const USER_ID: &str = "local";
const USER_NAME: &str = "local user";

#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    /// Address to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8008", value_parser = address)]
    pub listen: SocketAddr,
    /// Folder that keeps all data and the credentials; without it they end with the server
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `IP:PORT` or `HOST:PORT`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().map(|mut addresses| addresses.next());
    let expected = "expected an address and a port, such as 127.0.0.1:8008 or localhost:8008";
    match found {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(expected.to_owned()),
        Err(error) => Err(format!("{error}; {expected}")),
    }
}

#[derive(Debug, Clone)]
pub struct ServerOptions {
    pub listen: SocketAddr,
    /// `None`: all in memory, files in a folder that goes with the server.
    pub data: Option<PathBuf>,
    /// `None`: those kept in the data folder, or new ones.
    pub credentials: Option<KeyPair>,
}

/// A server at work. Dropping it leaves it at work; [`RunningServer::stop`] ends it.
#[derive(Debug)]
pub struct RunningServer {
    url: Url,
    credentials: KeyPair,
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
    upkeep: JoinHandle<()>,
    /// The file store's folder, where nothing is to be kept.
    _files: Option<tempfile::TempDir>,
}

/// 32 hexadecimal digits, as all ids of this API are.
fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Names of tasks, projects, queues and models have at least three characters.
fn check_name(name: &str) -> Result<(), Refusal> {
    if name.trim().chars().count() < 3 {
        return Err(Refusal::bad_value("name", "String value is too short"));
    }
    Ok(())
}

/// Starts a server; it serves when this returns.
pub async fn start(options: ServerOptions) -> anyhow::Result<RunningServer> {
    let listener = TcpListener::bind(options.listen).await.with_context(|| {
        let listen = options.listen;
        format!(
            "cannot listen on {listen}: is another server there? --listen takes another address"
        )
    })?;
    let address = listener.local_addr().context("no address to listen on")?;

    let (store, keys, folder, temporary) = match &options.data {
        Some(data) => {
            let mut builder = std::fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(data);
            made.with_context(|| format!("cannot make the data folder {}", data.display()))?;
            let file = data.join("clearml.redb");
            let store = Store::open(Some(&file)).with_context(|| {
                format!(
                    "cannot open the database {}: does another server use this folder?",
                    file.display()
                )
            })?;
            let keys = match options.credentials {
                Some(pair) => Keys::random(pair),
                None => Keys::kept_in(&data.join("credentials.json"))?,
            };
            (store, keys, data.join("files"), None)
        }
        None => {
            let store = Store::open(None).context("cannot make a database in memory")?;
            let pair = options.credentials.unwrap_or_else(KeyPair::random);
            let temporary = tempfile::Builder::new()
                .prefix("clearml-server-")
                .tempdir()
                .context("cannot make a temporary folder for files")?;
            let folder = temporary.path().to_owned();
            (store, Keys::random(pair), folder, Some(temporary))
        }
    };
    let files = FileStore::open(folder).context("cannot make the folder for files")?;
    store.write(|transaction| queues::make_default(transaction, Timestamp::now()))?;

    let credentials = keys.pair.clone();
    let app = Arc::new(App { store, keys, files });
    let stop = CancellationToken::new();
    let upkeep = tokio::spawn(upkeep(app.clone(), stop.clone()));
    let service = http::router(app).into_make_service_with_connect_info::<SocketAddr>();
    let stopped = stop.clone();
    let serving = tokio::spawn(async move {
        axum::serve(listener, service)
            .with_graceful_shutdown(stopped.cancelled_owned())
            .await
    });
    let url = format!(
        "http://{}/",
        SocketAddr::new(reachable(address.ip()), address.port())
    );
    Ok(RunningServer {
        url: url.parse().context("the address makes no URL")?,
        credentials,
        stop,
        serving,
        upkeep,
        _files: temporary,
    })
}

/// Where this machine reaches what listens on `ip`.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

const WATCHDOG_EVERY: Duration = Duration::from_secs(60);

/// Stops dead tasks and forgets old figures until told to stop.
async fn upkeep(app: Arc<App>, stop: CancellationToken) {
    let mut watchdog = tokio::time::interval(WATCHDOG_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = watchdog.tick() => {}
        }
        let app = app.clone();
        let step = move || -> Result<(), Refusal> {
            let now = Timestamp::now();
            for task in tasks::watchdog::stop_dead_tasks(&app.store, now)? {
                tracing::info!(%task, "stopped: nothing was heard of it for two hours");
            }
            let oldest = (now - workers::STATS_KEPT).as_millisecond();
            app.store.write(|t| t.forget_stats_before(oldest))
        };
        match tokio::task::spawn_blocking(step).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "upkeep of the database"),
            Err(error) => tracing::error!(%error, "upkeep of the database"),
        }
    }
}

impl RunningServer {
    /// The address of the API and of the file store.
    pub fn url(&self) -> &Url {
        &self.url
    }

    pub fn credentials(&self) -> &KeyPair {
        &self.credentials
    }

    /// A `clearml.conf` for clients on this machine.
    pub fn client_configuration(&self) -> String {
        let url = self.url.as_str().trim_end_matches('/');
        let access_key = &self.credentials.access_key;
        let secret_key = self.credentials.secret_key.expose();
        format!(
            "api {{\n    api_server: \"{url}\"\n    web_server: \"{url}\"\n    \
             files_server: \"{url}\"\n    credentials {{\n        \
             \"access_key\" = \"{access_key}\"\n        \"secret_key\" = \"{secret_key}\"\n    }}\n}}\n"
        )
    }

    /// Ends the server: calls that are under way are answered, what was reported is on disk.
    pub async fn stop(self) {
        self.stop.cancel();
        // A client that keeps its connection busy does not keep the server.
        let mut serving = self.serving;
        if tokio::time::timeout(Duration::from_secs(3), &mut serving)
            .await
            .is_err()
        {
            serving.abort();
            let _ = serving.await;
        }
        let _ = self.upkeep.await;
    }
}

/// `clearml-agent server`: serves until Ctrl-C or SIGTERM.
pub async fn serve(args: ServerArgs) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let server = start(ServerOptions {
        listen: args.listen,
        data: args.data.clone(),
        credentials: None,
    })
    .await?;
    let kept = match &args.data {
        Some(data) => format!("All data is kept in {}.", data.display()),
        None => "All data is in memory and ends with the server (--data DIR keeps it).".to_owned(),
    };
    let url = server.url().as_str().trim_end_matches('/').to_owned();
    let words = format!(
        "ClearML-compatible API server on {url}, with its file store (CLEARML_FILES_HOST) on the \
         same address.\nThere is no web page. {kept}\n\n\
         For clients, as clearml.conf:\n\n{}\nStop with Ctrl-C.\n",
        server.client_configuration()
    );
    // Nobody reading is no reason to end.
    let mut out = std::io::stdout();
    let _ = out.write_all(words.as_bytes()).and_then(|()| out.flush());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    server.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_to_listen_on_may_be_a_name() {
        assert!(address("localhost:0").unwrap().ip().is_loopback());
        assert_eq!(address("[::1]:80").unwrap().port(), 80);
        for bad in ["8008", "127.0.0.1", "127.0.0.1:99999", ""] {
            let words = address(bad).unwrap_err();
            assert!(words.contains("127.0.0.1:8008"), "{bad}: {words}");
        }
    }

    #[test]
    fn an_address_for_all_is_reached_on_this_machine() {
        for (listened, reached) in [
            ("0.0.0.0", "127.0.0.1"),
            ("::", "::1"),
            ("10.1.2.3", "10.1.2.3"),
        ] {
            let reached: IpAddr = reached.parse().unwrap();
            assert_eq!(reachable(listened.parse().unwrap()), reached);
        }
    }
}
