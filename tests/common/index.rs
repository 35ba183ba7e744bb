//! A package index on this machine, with wheels that the test makes, which may want a password.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Write as _;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;

pub struct PackageIndex {
    address: std::net::SocketAddr,
    login: Option<(&'static str, &'static str)>,
    asked: Arc<Mutex<Vec<String>>>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

struct Shelf {
    /// File name and contents.
    wheels: Vec<(String, Vec<u8>)>,
    login: Option<(&'static str, &'static str)>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl PackageIndex {
    /// With these packages (name, version), each a module that knows its version.
    pub async fn start(
        packages: &[(&str, &str)],
        login: Option<(&'static str, &'static str)>,
    ) -> PackageIndex {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let shelf = Arc::new(Shelf {
            wheels: packages
                .iter()
                .map(|(name, version)| wheel(name, version))
                .collect(),
            login,
            asked: asked.clone(),
        });
        let router = axum::Router::new()
            .route("/simple/{name}/", get(page))
            .route("/whl/{cuda}/{name}/", get(cuda_page))
            .route("/files/{name}", get(file))
            .with_state(shelf);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let served = axum::serve(listener, router);
            tokio::select! {
                _ = served => {}
                _ = stopped => {}
            }
        });
        PackageIndex {
            address,
            login,
            asked,
            _stop: stop,
        }
    }

    /// With user and password, where it wants them.
    pub fn url(&self) -> String {
        let login = self.login.map_or(String::new(), |(user, password)| {
            format!("{user}:{password}@")
        });
        format!("http://{login}{}/simple", self.address)
    }

    pub fn url_without_login(&self) -> String {
        format!("http://{}/simple", self.address)
    }

    /// The same packages, for CUDA 12.1 alone.
    pub fn cuda_template(&self) -> String {
        format!("http://{}/whl/cu{{}}/", self.address)
    }

    /// What was asked for, refused or not.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Shelf {
    /// The refusal, where these headers are not let in.
    fn refusal(&self, what: &str, headers: &HeaderMap) -> Option<Response> {
        self.asked.lock().unwrap().push(what.to_owned());
        let (user, password) = self.login?;
        let wanted = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let given = headers.get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.to_str().ok());
        let ask = [(header::WWW_AUTHENTICATE, "Basic realm=\"index\"")];
        (given != Some(&format!("Basic {wanted}")))
            .then(|| (StatusCode::UNAUTHORIZED, ask).into_response())
    }
}

async fn page(
    State(shelf): State<Arc<Shelf>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = shelf.refusal(&name, &headers) {
        return refused;
    }
    let start = format!("{}-", name.replace('-', "_"));
    let links: String = shelf
        .wheels
        .iter()
        .filter(|(file, _)| file.starts_with(&start))
        .map(|(file, _)| format!("<a href=\"/files/{file}\">{file}</a>\n"))
        .collect();
    match links.is_empty() {
        true => StatusCode::NOT_FOUND.into_response(),
        false => Html(format!("<html><body>{links}</body></html>")).into_response(),
    }
}

async fn cuda_page(
    state: State<Arc<Shelf>>,
    Path((cuda, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if cuda == "cu121" {
        return page(state, Path(name), headers).await;
    }
    state.0.asked.lock().unwrap().push(cuda);
    StatusCode::NOT_FOUND.into_response()
}

async fn file(
    State(shelf): State<Arc<Shelf>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = shelf.refusal(&name, &headers) {
        return refused;
    }
    match shelf.wheels.iter().find(|(file, _)| *file == name) {
        Some((_, bytes)) => bytes.clone().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// A wheel of one module, `NAME.py`.
pub fn wheel(name: &str, version: &str) -> (String, Vec<u8>) {
    let module = name.replace('-', "_");
    let info = format!("{module}-{version}.dist-info");
    let files = [
        (format!("{module}.py"), format!("VERSION = '{version}'\n")),
        (
            format!("{info}/METADATA"),
            format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"),
        ),
        (
            format!("{info}/WHEEL"),
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
                .into(),
        ),
    ];
    let mut record: String = files
        .iter()
        .map(|(path, _)| format!("{path},,\n"))
        .collect();
    record.push_str(&format!("{info}/RECORD,,\n"));
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    for (path, text) in files.iter().chain([&(format!("{info}/RECORD"), record)]) {
        archive.start_file(path.as_str(), options).unwrap();
        archive.write_all(text.as_bytes()).unwrap();
    }
    let bytes = archive.finish().unwrap().into_inner();
    (format!("{module}-{version}-py3-none-any.whl"), bytes)
}
