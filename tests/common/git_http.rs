//! Real git servers and repositories for tests: `git http-backend` behind a small HTTP server
//! with optional basic authentication, and repositories made with the git command line.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;

/// Serves every repository under a folder; lives as long as the test's process.
pub struct GitServer {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<SeenRequest>>>,
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct SeenRequest {
    pub path: String,
    /// User and password of basic authentication.
    pub login: Option<(String, String)>,
}

impl GitServer {
    /// `login`: the user and password that it demands.
    pub fn start(root: &Path, login: Option<(&str, &str)>) -> GitServer {
        let logins = login.map(|(user, password)| ("/", user, password));
        Self::listen(root, logins.as_slice(), None)
    }

    /// Each path (by its beginning) wants its own user and password; what has none is open.
    pub fn start_with(root: &Path, logins: &[(&str, &str, &str)]) -> GitServer {
        Self::listen(root, logins, None)
    }

    /// Over https, with the certificate and key in these PEM files.
    pub fn start_tls(root: &Path, certificate: &Path, key: &Path) -> GitServer {
        Self::start_tls_with(root, certificate, key, &[])
    }

    pub fn start_tls_with(
        root: &Path,
        certificate: &Path,
        key: &Path,
        logins: &[(&str, &str, &str)],
    ) -> GitServer {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(certificate).unwrap()],
                PrivateKeyDer::from_pem_file(key).unwrap(),
            )
            .unwrap();
        Self::listen(root, logins, Some(Arc::new(config)))
    }

    fn listen(
        root: &Path,
        logins: &[(&str, &str, &str)],
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> GitServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<SeenRequest>>> = Arc::default();
        let seen = Arc::clone(&requests);
        let root = root.to_owned();
        let logins: Vec<(String, (String, String))> = logins
            .iter()
            .map(|(path, user, password)| {
                (path.to_string(), (user.to_string(), password.to_string()))
            })
            .collect();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, logins, seen) = (root.clone(), logins.clone(), Arc::clone(&seen));
                let tls = tls.clone();
                thread::spawn(move || match tls {
                    None => serve(stream, &root, &logins, &seen),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).ok()?;
                        let mut stream = rustls::StreamOwned::new(connection, stream);
                        serve(&mut stream, &root, &logins, &seen)?;
                        stream.conn.send_close_notify();
                        stream.flush().ok()
                    }
                });
            }
        });
        GitServer { address, requests }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `http://host:port/<path>`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub fn url_with(&self, login: &str, path: &str) -> String {
        format!("http://{login}@{}/{path}", self.address)
    }

    pub fn requests(&self) -> Vec<SeenRequest> {
        self.requests.lock().unwrap().clone()
    }
}

/// One connection, one request, then closed: `git http-backend` is a CGI program.
fn serve(
    mut stream: impl Read + Write,
    root: &Path,
    logins: &[(String, (String, String))],
    seen: &Mutex<Vec<SeenRequest>>,
) -> Option<()> {
    let mut reader = BufReader::new(&mut stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned())
            }
            None => break,
        };
    }
    // To a proxy, the whole address is said.
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest[rest.find('/')?..].to_owned(),
        None => target,
    };
    let body = read_body(&mut reader, &headers)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    // `/here/x` has moved to `/x`, and `/to/host:port/x` to that server.
    let moved = path.strip_prefix("/here").map(str::to_owned).or_else(|| {
        let elsewhere = path.strip_prefix("/to/")?;
        Some(format!("http://{elsewhere}"))
    });
    if let Some(location) = moved {
        let answer = format!(
            "HTTP/1.1 301 Moved Permanently\r\nLocation: {location}?{query}\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        return stream.write_all(answer.as_bytes()).ok();
    }
    let given = headers.get("authorization").and_then(|value| {
        if let Some(token) = value.strip_prefix("Bearer ") {
            return Some(("Bearer".to_owned(), token.to_owned()));
        }
        let decoded = BASE64_STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    });
    seen.lock().unwrap().push(SeenRequest {
        path: path.to_owned(),
        login: given.clone(),
    });
    let wanted = logins
        .iter()
        .find(|(start, _)| path.starts_with(start.as_str()));
    if wanted.is_some_and(|(_, login)| given.as_ref() != Some(login)) {
        let refusal = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\n\
                       Content-Length: 0\r\nConnection: close\r\n\r\n";
        return stream.write_all(refusal.as_bytes()).ok();
    }
    if let Some((status, kind, content)) = lfs(root, path, &body, headers.get("host")?) {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            content.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        return stream.write_all(&content).ok();
    }
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", &method)
        .env("CONTENT_LENGTH", body.len().to_string())
        .envs(headers.get("content-type").map(|v| ("CONTENT_TYPE", v)))
        .envs(
            headers
                .get("content-encoding")
                .map(|v| ("HTTP_CONTENT_ENCODING", v)),
        )
        .envs(
            headers
                .get("git-protocol")
                .map(|v| ("HTTP_GIT_PROTOCOL", v)),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut input = child.stdin.take()?;
    let feeder = thread::spawn(move || input.write_all(&body));
    let mut output = Vec::new();
    child.stdout.take()?.read_to_end(&mut output).ok()?;
    child.wait().ok()?;
    feeder.join().ok()?.ok()?;
    let end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let status = head
        .lines()
        .find_map(|line| line.strip_prefix("Status: "))
        .unwrap_or("200 OK");
    let content = &output[end + 4..];
    let answer = format!(
        "HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        content.len()
    );
    stream.write_all(answer.as_bytes()).ok()?;
    stream.write_all(content).ok()
}

/// The Git LFS side of the server: objects are those that the repository itself has.
fn lfs(
    root: &Path,
    path: &str,
    body: &[u8],
    host: &str,
) -> Option<(&'static str, &'static str, Vec<u8>)> {
    const JSON: &str = "application/vnd.git-lfs+json";
    if let Some(repository) = path.strip_suffix("/info/lfs/objects/batch") {
        let request: serde_json::Value = serde_json::from_slice(body).ok()?;
        let objects = request["objects"].as_array()?.iter().map(|object| {
            let href = format!(
                "http://{host}{repository}/lfs-object/{}",
                object["oid"].as_str().unwrap()
            );
            serde_json::json!({
                "oid": object["oid"], "size": object["size"],
                "actions": {"download": {"href": href}},
            })
        });
        let objects: Vec<_> = objects.collect();
        let answer = serde_json::json!({"transfer": "basic", "objects": objects});
        return Some(("200 OK", JSON, answer.to_string().into_bytes()));
    }
    let (repository, oid) = path.split_once("/lfs-object/")?;
    let folder = root
        .join(repository.trim_start_matches('/'))
        .join("lfs/objects");
    match fs::read(folder.join(&oid[..2]).join(&oid[2..4]).join(oid)) {
        Ok(content) => Some(("200 OK", "application/octet-stream", content)),
        Err(_) => Some((
            "404 Not Found",
            JSON,
            br#"{"message": "no such object"}"#.to_vec(),
        )),
    }
}

fn read_body(reader: &mut impl BufRead, headers: &BTreeMap<String, String>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if headers
        .get("transfer-encoding")
        .is_some_and(|value| value == "chunked")
    {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            if size == 0 {
                return Some(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    let size = headers
        .get("content-length")
        .map_or(0, |value| value.parse().unwrap_or(0));
    body.resize(size, 0);
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

/// A repository with a work tree, made with the git command line and no one's configuration.
pub struct TestRepo {
    pub folder: PathBuf,
    _temp: TempDir,
}

impl TestRepo {
    /// With one commit (`train.py`) on `main`.
    pub fn new() -> TestRepo {
        let repo = Self::empty();
        repo.write("train.py", "print('training')\n");
        repo.commit("first");
        repo
    }

    pub fn empty() -> TestRepo {
        let temp = TempDir::new().unwrap();
        let folder = temp.path().join("up");
        fs::create_dir(&folder).unwrap();
        let repo = TestRepo {
            folder,
            _temp: temp,
        };
        repo.git(&["init", "--quiet", "--initial-branch=main"]);
        // A commit may be asked for by its id, as the big forges allow.
        repo.git(&["config", "uploadpack.allowAnySHA1InWant", "true"]);
        repo
    }

    /// The folder above the repository, to be served; the repository is `up/.git` there.
    pub fn served_root(&self) -> &Path {
        self.folder.parent().unwrap()
    }

    pub fn url(&self) -> String {
        self.folder.to_str().unwrap().to_owned()
    }

    pub fn git(&self, args: &[&str]) -> String {
        git_in(&self.folder, args)
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let full = self.folder.join(path);
        fs::create_dir_all(full.parent().unwrap()).unwrap();
        fs::write(full, content).unwrap();
    }

    /// Commits everything; gives the commit's id.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message]);
        self.commit_id()
    }

    pub fn commit_id(&self) -> String {
        self.git(&["rev-parse", "HEAD"]).trim().to_owned()
    }
}

/// Runs git; gives its output as it is.
pub fn git_in(folder: &Path, args: &[&str]) -> String {
    let output = git_command(folder, args).output().unwrap();
    assert!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn git_command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .args([
            "-c",
            "protocol.file.allow=always",
            "-c",
            "core.quotePath=true",
        ])
        .args(args)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "Test")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "test@localhost")));
    command
}

/// Every file below a folder: path → kind and content. git's own folders are left out.
pub fn tree(folder: &Path) -> BTreeMap<String, (String, Vec<u8>)> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, (String, Vec<u8>)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap() == ".git" {
                continue;
            }
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if meta.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                found.insert(name, ("link".into(), target.to_str().unwrap().into()));
            } else if meta.is_dir() {
                walk(root, &path, found);
            } else {
                let executable = meta.permissions().mode() & 0o100 != 0;
                let kind = if executable { "executable" } else { "file" };
                found.insert(name, (kind.into(), fs::read(&path).unwrap()));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}
