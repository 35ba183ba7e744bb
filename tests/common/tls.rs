//! A package index over https whose certificate nobody knows, the authority that has signed it, and
//! the proxy of a network that has no other way out.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;

use crate::index::Shelf;

/// An authority of the test's own, made by the openssl program.
pub struct Authority {
    folder: TempDir,
}

impl Authority {
    pub fn new() -> Authority {
        let authority = Authority {
            folder: tempfile::tempdir().unwrap(),
        };
        let config =
            "[req]\ndistinguished_name=dn\n[dn]\n[ca]\nbasicConstraints=critical,CA:TRUE\n";
        std::fs::write(authority.path("openssl.cnf"), config).unwrap();
        authority.openssl("ca", "/CN=an authority", &["-extensions", "ca"]);
        // The folder that OpenSSL's rehash makes.
        let hash = Command::new("openssl")
            .args(["x509", "-noout", "-hash", "-in"])
            .arg(authority.certificate())
            .output()
            .unwrap();
        let hash = String::from_utf8(hash.stdout).unwrap();
        std::fs::create_dir(authority.hashed_folder()).unwrap();
        std::fs::copy(
            authority.certificate(),
            authority.hashed_folder().join(format!("{}.0", hash.trim())),
        )
        .unwrap();
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn certificate(&self) -> PathBuf {
        self.path("ca.pem")
    }

    pub fn hashed_folder(&self) -> PathBuf {
        self.path("hashed")
    }

    /// A PEM file of certificate and key for a host (or a client) of this name.
    pub fn issue(&self, name: &str) -> PathBuf {
        let config = format!(
            "[req]\ndistinguished_name=dn\n[dn]\n[leaf]\nbasicConstraints=CA:FALSE\n\
             subjectAltName=DNS:{name}\n"
        );
        std::fs::write(self.path("openssl.cnf"), config).unwrap();
        let signed = ["-extensions", "leaf", "-CA", "ca.pem", "-CAkey", "ca.key"];
        self.openssl(name, &format!("/CN={name}"), &signed);
        let both = self.path(&format!("{name}.both"));
        let read = |end: &str| std::fs::read(self.path(&format!("{name}.{end}"))).unwrap();
        std::fs::write(&both, [read("pem"), read("key")].concat()).unwrap();
        both
    }

    fn openssl(&self, name: &str, subject: &str, more: &[&str]) {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "2"])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-config", "openssl.cnf", "-subj", subject])
            .args(["-keyout", &format!("{name}.key")])
            .args(["-out", &format!("{name}.pem")])
            .args(more)
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
    }
}

/// An index; it lives as long as the test's process.
pub struct TlsIndex {
    pub address: SocketAddr,
}

impl TlsIndex {
    /// With certificate and key of this PEM file; where `clients` says so, for those alone that have
    /// a certificate of this authority.
    pub fn start(shelf: Shelf, certificate: &Path, clients: Option<&Authority>) -> TlsIndex {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = rustls::RootCertStore::empty();
                let root = CertificateDer::from_pem_file(authority.certificate()).unwrap();
                roots.add(root).unwrap();
                let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots),
                    provider,
                );
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let config = builder
            .with_single_cert(
                vec![CertificateDer::from_pem_file(certificate).unwrap()],
                PrivateKeyDer::from_pem_file(certificate).unwrap(),
            )
            .unwrap();
        let (config, shelf) = (Arc::new(config), Arc::new(shelf));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, shelf) = (config.clone(), shelf.clone());
                thread::spawn(move || {
                    let connection = rustls::ServerConnection::new(config).ok()?;
                    let mut stream = rustls::StreamOwned::new(connection, stream);
                    let head = read_head(&mut stream)?;
                    let path = head.split(' ').nth(1)?;
                    let body = match path.trim_matches('/').split_once('/') {
                        Some(("simple", name)) => shelf.page(name).map(String::into_bytes),
                        Some(("files", name)) => shelf.file(name).map(<[u8]>::to_vec),
                        _ => None,
                    };
                    let status = body.as_ref().map_or("404 Not Found", |_| "200 OK");
                    let body = body.filter(|_| !head.starts_with("HEAD "));
                    let body = body.unwrap_or_default();
                    let head = format!(
                        "HTTP/1.1 {status}\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\
                         connection: close\r\n\r\n",
                        body.len()
                    );
                    stream.write_all(head.as_bytes()).ok()?;
                    stream.write_all(&body).ok()?;
                    stream.conn.send_close_notify();
                    stream.flush().ok()
                });
            }
        });
        TlsIndex { address }
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}/simple", self.address.port())
    }
}

fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// An HTTP proxy that leads to one server, whatever it is asked for: names that exist nowhere else are
/// found behind it alone.
pub struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub fn start(target: SocketAddr, login: Option<&str>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = asked.clone();
        let wanted = login.map(|login| {
            let login = base64::engine::general_purpose::STANDARD.encode(login);
            format!("proxy-authorization: basic {}", login.to_lowercase())
        });
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, wanted) = (seen.clone(), wanted.clone());
                thread::spawn(move || pass(stream, target, wanted.as_deref(), &seen));
            }
        });
        Proxy { address, asked }
    }

    /// Without its scheme.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// `CONNECT host:443`, `GET http://host/`: what was let through.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn pass(
    mut client: TcpStream,
    target: SocketAddr,
    wanted: Option<&str>,
    seen: &Mutex<Vec<String>>,
) -> Option<()> {
    let head = read_head(&mut client)?;
    let has = |line: &str| head.lines().any(|l| l.to_lowercase() == line);
    if wanted.is_some_and(|line| !has(line)) {
        let answer = "HTTP/1.1 407 Proxy Authentication Required\r\n\
                      proxy-authenticate: Basic realm=\"proxy\"\r\ncontent-length: 0\r\n\
                      connection: close\r\n\r\n";
        return client.write_all(answer.as_bytes()).ok();
    }
    let words: Vec<&str> = head.split(' ').take(2).collect();
    seen.lock().unwrap().push(words.join(" "));
    let mut server = TcpStream::connect(target).ok()?;
    match words[0] {
        "CONNECT" => client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?,
        _ => server.write_all(head.as_bytes()).ok()?,
    }
    let (mut from_client, mut to_server) = (client.try_clone().ok()?, server.try_clone().ok()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    });
    let _ = std::io::copy(&mut server, &mut client);
    client.shutdown(std::net::Shutdown::Write).ok()
}
