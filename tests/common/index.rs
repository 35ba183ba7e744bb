//! A package index on this machine, with packages that the test makes, which may want a password.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Write as _;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use clearml_agent::python::requirements::normalise;
use sha2::{Digest as _, Sha256};

/// What an index has of one version of a package.
#[derive(Debug, Clone)]
pub struct Package {
    name: String,
    version: String,
    /// Further lines of its metadata.
    metadata: String,
    requires_python: Option<&'static str>,
    yanked: bool,
    module: Option<&'static str>,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Wheel,
    Source,
    /// A source whose build fails.
    Broken,
}

impl Package {
    /// A wheel with a module that knows its version.
    pub fn new(name: &str, version: &str) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            metadata: String::new(),
            requires_python: None,
            yanked: false,
            module: None,
            form: Form::Wheel,
        }
    }

    pub fn requires(mut self, requirement: &str) -> Package {
        self.metadata
            .push_str(&format!("Requires-Dist: {requirement}\n"));
        self
    }

    pub fn extra(mut self, extra: &str, requirement: &str) -> Package {
        self.metadata.push_str(&format!(
            "Provides-Extra: {extra}\nRequires-Dist: {requirement} ; extra == '{extra}'\n"
        ));
        self
    }

    pub fn requires_python(mut self, rule: &'static str) -> Package {
        self.metadata
            .push_str(&format!("Requires-Python: {rule}\n"));
        self.requires_python = Some(rule);
        self
    }

    pub fn yanked(mut self) -> Package {
        self.yanked = true;
        self
    }

    /// With this as its module.
    pub fn module(mut self, text: &'static str) -> Package {
        self.module = Some(text);
        self
    }

    /// As a source that needs nothing to be built.
    pub fn source(mut self) -> Package {
        self.form = Form::Source;
        self
    }

    pub fn broken_source(mut self) -> Package {
        self.form = Form::Broken;
        self
    }

    /// File name and contents.
    pub fn file(&self) -> (String, Vec<u8>) {
        match self.form {
            Form::Wheel => self.wheel(),
            Form::Source | Form::Broken => self.archive(),
        }
    }

    fn stem(&self) -> String {
        format!("{}-{}", self.name.replace(['-', '.'], "_"), self.version)
    }

    fn wheel(&self) -> (String, Vec<u8>) {
        let Package { name, version, .. } = self;
        let stem = self.stem();
        let info = format!("{stem}.dist-info");
        let text = match self.module {
            Some(text) => text.to_owned(),
            None => format!("VERSION = '{version}'\n"),
        };
        let files = [
            (format!("{}.py", module_name(name)), text),
            (
                format!("{info}/METADATA"),
                format!(
                    "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{}",
                    self.metadata
                ),
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
        (format!("{stem}-py3-none-any.whl"), bytes)
    }

    fn archive(&self) -> (String, Vec<u8>) {
        let stem = self.stem();
        let compressed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut archive = tar::Builder::new(compressed);
        let mut files = project(&self.name, &self.version);
        files.push((
            "PKG-INFO".into(),
            format!(
                "Metadata-Version: 2.1\nName: {}\nVersion: {}\n",
                self.name, self.version
            ),
        ));
        if self.form == Form::Broken {
            files.retain(|(name, _)| name != "backend.py");
            files.push(("backend.py".into(), "raise RuntimeError('broken')\n".into()));
        }
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            archive
                .append_data(&mut header, format!("{stem}/{name}"), text.as_bytes())
                .unwrap();
        }
        let bytes = archive.into_inner().unwrap().finish().unwrap();
        (format!("{stem}.tar.gz"), bytes)
    }
}

fn module_name(name: &str) -> String {
    normalise(name).replace('-', "_")
}

/// A project of one module that is built by itself: nothing has to be there or downloaded.
pub fn project(name: &str, version: &str) -> Vec<(String, String)> {
    const PROJECT: &str = "[build-system]\nrequires = []\nbuild-backend = \"backend\"\n\
                           backend-path = [\".\"]\n";
    const BACKEND: &str = r#"
import os
import zipfile


def _wheel(folder, files):
    info = f"{MODULE}-{VERSION}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n"
    files[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    name = f"{MODULE}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name


def build_wheel(folder, config_settings=None, metadata_directory=None):
    return _wheel(folder, {f"{MODULE}.py": f"VERSION = {VERSION!r}\n"})


def build_editable(folder, config_settings=None, metadata_directory=None):
    return _wheel(folder, {f"{MODULE}.pth": os.getcwd() + "\n"})
"#;
    let module = module_name(name);
    let backend = format!("NAME, VERSION, MODULE = {name:?}, {version:?}, {module:?}\n{BACKEND}");
    vec![
        ("pyproject.toml".into(), PROJECT.into()),
        ("backend.py".into(), backend),
        (format!("{module}.py"), format!("VERSION = '{version}'\n")),
    ]
}

/// A wheel of one module, `NAME.py`.
pub fn wheel(name: &str, version: &str) -> (String, Vec<u8>) {
    Package::new(name, version).file()
}

pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file of the index.
struct Shelved {
    project: String,
    name: String,
    bytes: Vec<u8>,
    /// Of its link.
    attributes: String,
}

/// All the files.
pub struct Shelf(Vec<Shelved>);

impl Shelf {
    pub fn new(packages: &[Package]) -> Shelf {
        let shelved = |package: &Package| {
            let (name, bytes) = package.file();
            let mut attributes = String::new();
            if let Some(rule) = package.requires_python {
                let rule = rule.replace('>', "&gt;").replace('<', "&lt;");
                attributes.push_str(&format!(" data-requires-python=\"{rule}\""));
            }
            if package.yanked {
                attributes.push_str(" data-yanked=\"a mistake\"");
            }
            Shelved {
                project: normalise(&package.name),
                name,
                bytes,
                attributes,
            }
        };
        Shelf(packages.iter().map(shelved).collect())
    }

    /// A file that is there already.
    pub fn add(&mut self, project: &str, name: String, bytes: Vec<u8>) {
        self.0.push(Shelved {
            project: project.into(),
            name,
            bytes,
            attributes: String::new(),
        });
    }

    /// The page of a package, if there is one.
    pub fn page(&self, project: &str) -> Option<String> {
        let links: String = self
            .0
            .iter()
            .filter(|file| file.project == project)
            .map(|file| {
                let Shelved {
                    name,
                    bytes,
                    attributes,
                    ..
                } = file;
                let hash = sha256(bytes);
                format!("<a href=\"/files/{name}#sha256={hash}\"{attributes}>{name}</a>\n")
            })
            .collect();
        (!links.is_empty()).then(|| format!("<html><body>{links}</body></html>"))
    }

    pub fn file(&self, name: &str) -> Option<&[u8]> {
        let file = self.0.iter().find(|file| file.name == name)?;
        Some(&file.bytes)
    }
}

pub struct PackageIndex {
    address: std::net::SocketAddr,
    login: Option<(&'static str, &'static str)>,
    asked: Arc<Mutex<Vec<String>>>,
    failing: Arc<Mutex<Vec<String>>>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

struct Served {
    shelf: Shelf,
    login: Option<(&'static str, &'static str)>,
    asked: Arc<Mutex<Vec<String>>>,
    failing: Arc<Mutex<Vec<String>>>,
}

impl PackageIndex {
    /// With these packages (name, version), each a module that knows its version.
    pub async fn start(
        packages: &[(&str, &str)],
        login: Option<(&'static str, &'static str)>,
    ) -> PackageIndex {
        let packages: Vec<Package> = packages
            .iter()
            .map(|(name, version)| Package::new(name, version))
            .collect();
        Self::of(Shelf::new(&packages), login).await
    }

    pub async fn of(shelf: Shelf, login: Option<(&'static str, &'static str)>) -> PackageIndex {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let failing = Arc::new(Mutex::new(Vec::new()));
        let served = Arc::new(Served {
            shelf,
            login,
            asked: asked.clone(),
            failing: failing.clone(),
        });
        let router = axum::Router::new()
            .route("/simple/{name}/", get(page))
            .route("/whl/{cuda}/", get(cuda_root))
            .route("/whl/{cuda}/{name}/", get(cuda_page))
            .route("/files/{name}", get(file))
            .with_state(served);
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
            failing,
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

    /// The folder of its files.
    pub fn files(&self) -> String {
        format!("http://{}/files", self.address)
    }

    /// The same packages, for CUDA 12.1 alone.
    pub fn cuda_template(&self) -> String {
        format!("http://{}/whl/cu{{}}/", self.address)
    }

    /// From now on it answers 503 where these (packages, files, `cu121`) are asked for.
    pub fn fail(&self, what: &[&str]) {
        *self.failing.lock().unwrap() = what.iter().map(|&name| name.to_owned()).collect();
    }

    /// What was asked for, refused or not.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Served {
    /// The refusal, where these headers are not let in.
    fn refusal(&self, what: &str, headers: &HeaderMap) -> Option<Response> {
        self.asked.lock().unwrap().push(what.to_owned());
        if self.failing.lock().unwrap().iter().any(|name| name == what) {
            return Some(StatusCode::SERVICE_UNAVAILABLE.into_response());
        }
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
    State(served): State<Arc<Served>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = served.refusal(&name, &headers) {
        return refused;
    }
    match served.shelf.page(&name) {
        None => StatusCode::NOT_FOUND.into_response(),
        Some(page) => Html(page).into_response(),
    }
}

/// The Python agent looks for an index in its root.
async fn cuda_root(Path(cuda): Path<String>) -> StatusCode {
    match cuda.as_str() {
        "cu121" => StatusCode::OK,
        _ => StatusCode::NOT_FOUND,
    }
}

async fn cuda_page(
    state: State<Arc<Served>>,
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
    State(served): State<Arc<Served>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = served.refusal(&name, &headers) {
        return refused;
    }
    match served.shelf.file(&name) {
        Some(bytes) => bytes.to_vec().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
