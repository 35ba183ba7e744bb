//! The file store, where the SDK keeps artifacts and models: a folder served over HTTP.

use percent_encoding::percent_decode_str;
use std::path::{Path, PathBuf};

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest as _, Multipart, Request};
use axum::http::header::{
    CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use super::auth::Keys;

#[derive(Debug)]
pub struct FileStore {
    root: PathBuf,
}

/// A request that cannot be served, in words.
struct Failure(StatusCode, String);

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let status = match error.kind() {
            std::io::ErrorKind::NotFound => StatusCode::NOT_FOUND,
            std::io::ErrorKind::NotADirectory
            | std::io::ErrorKind::IsADirectory
            | std::io::ErrorKind::InvalidFilename => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failure(status, error.to_string())
    }
}

impl FileStore {
    /// `root` is made if it is not there.
    pub fn open(root: PathBuf) -> std::io::Result<FileStore> {
        std::fs::create_dir_all(&root)?;
        Ok(FileStore { root })
    }

    pub async fn answer(&self, keys: &Keys, path: &str, request: Request) -> Response {
        if let Err(refusal) = keys.check(request.headers(), Timestamp::now().as_second()) {
            return (StatusCode::UNAUTHORIZED, refusal.message).into_response();
        }
        let method = request.method().clone();
        let result = if method == Method::POST {
            self.upload(request).await
        } else if method == Method::GET || method == Method::HEAD {
            self.download(path, request.uri().query()).await
        } else if method == Method::DELETE {
            self.delete(path).await
        } else {
            Err(Failure(StatusCode::METHOD_NOT_ALLOWED, String::new()))
        };
        result.unwrap_or_else(|Failure(status, why)| (status, why).into_response())
    }

    /// Each part of the form is a file, its name the path. Answers with the paths.
    async fn upload(&self, request: Request) -> Result<Response, Failure> {
        let encoded = request.headers().get(CONTENT_ENCODING);
        if encoded.is_some_and(|encoding| encoding != "identity") {
            let why = "the body must have no content encoding".to_owned();
            return Err(Failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
        }
        let mut form = Multipart::from_request(request, &())
            .await
            .map_err(|e| Failure(e.status(), e.body_text()))?;
        let mut paths = Vec::new();
        loop {
            let part = form.next_field().await;
            let part = part.map_err(|e| Failure(e.status(), e.body_text()))?;
            let Some(mut part) = part else { break };
            let path = part.name().unwrap_or_default().to_owned();
            let file = self.locate(&path)?;
            if let Some(folder) = file.parent() {
                tokio::fs::create_dir_all(folder).await?;
            }
            // Written beside its place and moved there: a file is never seen half.
            let (std_file, unfinished) = tempfile::NamedTempFile::new_in(&self.root)?.into_parts();
            let mut writer = tokio::fs::File::from_std(std_file);
            while let Some(chunk) = part.chunk().await.transpose() {
                let chunk = chunk.map_err(|e| Failure(e.status(), e.body_text()))?;
                writer.write_all(&chunk).await?;
            }
            writer.flush().await?;
            unfinished
                .persist(&file)
                .map_err(|e| Failure::from(e.error))?;
            paths.push(path);
        }
        Ok(Json(paths).into_response())
    }

    async fn download(&self, path: &str, query: Option<&str>) -> Result<Response, Failure> {
        let file = self.locate(&percent_decoded(path))?;
        let opened = tokio::fs::File::open(&file).await?;
        let metadata = opened.metadata().await?;
        if !metadata.is_file() {
            return Err(Failure(StatusCode::NOT_FOUND, "no such file".to_owned()));
        }
        let mut response = Body::from_stream(ReaderStream::new(opened)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, metadata.len().into());
        // What was uploaded is never run by a browser.
        let kind = "application/octet-stream";
        for (name, value) in [(CONTENT_TYPE, kind), (X_CONTENT_TYPE_OPTIONS, "nosniff")] {
            headers.insert(name, axum::http::HeaderValue::from_static(value));
        }
        if query.is_some_and(|query| query.split('&').any(|word| word.starts_with("download"))) {
            let value = axum::http::HeaderValue::from_static("attachment");
            headers.insert(CONTENT_DISPOSITION, value);
        }
        Ok(response)
    }

    async fn delete(&self, path: &str) -> Result<Response, Failure> {
        let file = self.locate(&percent_decoded(path))?;
        if tokio::fs::metadata(&file).await?.is_dir() {
            tokio::fs::remove_dir_all(&file).await?;
        } else {
            tokio::fs::remove_file(&file).await?;
        }
        Ok(StatusCode::OK.into_response())
    }

    fn locate(&self, path: &str) -> Result<PathBuf, Failure> {
        inside(&self.root, path).ok_or_else(|| {
            let why = format!("{path:?} is not the path of a file in the store");
            Failure(StatusCode::BAD_REQUEST, why)
        })
    }
}

/// The file that `path` names within `root`; `None` for what would lead out of it, or to it.
fn inside(root: &Path, path: &str) -> Option<PathBuf> {
    let mut file = root.to_owned();
    let mut named = false;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if matches!(part, "." | "..") || part.contains('\0') {
            return None;
        }
        file.push(part);
        named = true;
    }
    named.then_some(file)
}

fn percent_decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_the_store() {
        let root = Path::new("/store");
        for (path, expected) in [
            ("/a/b.txt", Some("/store/a/b.txt")),
            ("a//b c", Some("/store/a/b c")),
            ("//etc/passwd", Some("/store/etc/passwd")),
            ("a/../../b", None),
            ("..", None),
            ("./a", None),
            ("a\0b", None),
            ("", None),
            ("/", None),
        ] {
            assert_eq!(inside(root, path), expected.map(PathBuf::from), "{path:?}");
        }
    }

    #[test]
    fn percent_signs() {
        for (text, decoded) in [
            ("a%20b", "a b"),
            ("%2e%2E/x", "../x"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("%C3%A4é", "äé"),
        ] {
            assert_eq!(percent_decoded(text), decoded);
        }
    }
}
