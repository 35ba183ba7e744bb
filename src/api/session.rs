//! A logged-in connection to one API server.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use url::{Host, Url};

use super::error::ApiError;
use super::retry::{self, Patience};
use super::tls::{self, Trust};
use super::token::Token;
use crate::secret::Secret;

/// Where the API server is and how to be let in.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub api_server: Url,
    pub credentials: Credentials,
    pub trust: Trust,
    /// The worker id: sent with each call as `X-ClearML-Worker`.
    pub worker: String,
}

#[derive(Debug, Clone)]
pub enum Credentials {
    /// An access key and its secret, exchanged for a token by `auth.login`.
    KeyPair {
        access_key: Secret,
        secret_key: Secret,
    },
    /// A ready token (`CLEARML_AUTH_TOKEN`): used until it is refused.
    Token(Secret),
}

/// One session for the whole run; connections are kept and reused. All methods take `&self`.
#[derive(Debug)]
pub struct Session {
    client: reqwest::Client,
    /// The server's address without a trailing slash, as messages show it.
    host: String,
    credentials: Credentials,
    token: Mutex<Token>,
}

/// One request takes at most this long, whatever the patience.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Envelope<T> {
    meta: Meta,
    data: Option<T>,
}

#[derive(Deserialize)]
struct Meta {
    result_code: u16,
    #[serde(default)]
    result_subcode: u32,
    #[serde(default)]
    result_msg: String,
}

/// What one try came to.
enum Try {
    Answer {
        status: u16,
        retry_after: Option<Duration>,
        body: Vec<u8>,
    },
    NoAnswer {
        cause: String,
        /// Or the server was never reached.
        was_sent: bool,
    },
    /// There is no way to talk to this server as things are set.
    NoTls { cause: String },
}

impl Session {
    /// Logs in. A server that is not there is an error within 30 s.
    pub async fn login(endpoint: &Endpoint) -> Result<Session, ApiError> {
        let host = endpoint
            .api_server
            .as_str()
            .trim_end_matches('/')
            .to_owned();
        let setup = |cause: String| ApiError::Setup {
            host: host.clone(),
            cause,
        };

        let mut headers = HeaderMap::new();
        let worker = HeaderValue::from_str(&endpoint.worker).map_err(|_| {
            setup(format!(
                "worker id {:?} cannot be a header",
                endpoint.worker
            ))
        })?;
        headers.insert("x-clearml-worker", worker.clone());
        headers.insert("x-trains-worker", worker);
        let client_name = concat!("clearml-agent-", env!("CARGO_PKG_VERSION"));
        headers.insert("x-clearml-client", HeaderValue::from_static(client_name));
        headers.insert("x-trains-client", HeaderValue::from_static(client_name));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));

        // The certificate store is not read where it cannot be needed: a plain-http server on the
        // machine's own network.
        let trust = match endpoint.api_server.scheme() {
            "http" => &Trust::Anything,
            _ => &endpoint.trust,
        };
        let mut builder = tls::client_builder(trust).map_err(setup)?;
        if is_this_machine(&endpoint.api_server) {
            // A proxy would look for the server on its own machine.
            builder = builder.no_proxy();
        }
        let client = builder
            .default_headers(headers)
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .build()
            .map_err(|e| setup(causes(&e)))?;

        let session = Session {
            client,
            host,
            credentials: endpoint.credentials.clone(),
            token: Mutex::new(Token::new("")),
        };
        let token = session.fetch_token(Patience::Start).await?;
        *session.token.lock().await = token;
        Ok(session)
    }

    /// The server's address, for messages.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the server is the open-source one, or has no more than it.
    pub async fn is_basic(&self) -> bool {
        self.token.lock().await.feature_set() == "basic"
    }

    /// Calls `endpoint` (`service.action`) with a JSON body.
    pub async fn call<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        body: &impl Serialize,
        patience: Patience,
    ) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body).map_err(|e| ApiError::UnexpectedAnswer {
            endpoint,
            cause: e.to_string(),
        })?;
        self.send(endpoint, "application/json", body, patience)
            .await
    }

    /// Sends a batch: `body` holds one JSON object a line.
    pub async fn call_batch<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        body: Vec<u8>,
        patience: Patience,
    ) -> Result<T, ApiError> {
        self.send(endpoint, "application/json-lines", body, patience)
            .await
    }

    /// Gets a file from a file server: with this session's token only where it is ClearML's own.
    pub async fn download(
        &self,
        url: &Url,
        with_token: bool,
        patience: Patience,
    ) -> Result<Vec<u8>, ApiError> {
        let mut request = self.client.get(url.clone());
        if with_token {
            request = request.header(AUTHORIZATION, self.bearer(patience).await?);
        }
        match self.persist(request, patience).await? {
            (200, body) => Ok(body),
            (status, _) => Err(ApiError::UnexpectedAnswer {
                endpoint: "the file server",
                cause: format!("HTTP {status}"),
            }),
        }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        content_type: &'static str,
        body: Vec<u8>,
        patience: Patience,
    ) -> Result<T, ApiError> {
        // Logging in makes nothing new.
        let for_login = match patience {
            Patience::Unsent => Patience::Start,
            patience => patience,
        };
        let mut bearer = self.bearer(for_login).await?;
        let mut renewed = false;
        loop {
            let request = self
                .client
                .post(format!("{}/{endpoint}", self.host))
                .header(CONTENT_TYPE, content_type)
                .header(AUTHORIZATION, bearer.clone())
                .body(body.clone());
            let begin = Instant::now();
            let (status, answer) = self.persist(request, patience).await?;
            tracing::debug!(endpoint, status, took = ?begin.elapsed(), "API call");
            // A token may be refused before its time: the server was restarted with another key.
            if status == 401 && !renewed && matches!(self.credentials, Credentials::KeyPair { .. })
            {
                renewed = true;
                bearer = self.renewed_bearer(&bearer, for_login).await?;
                continue;
            }
            return self.read_answer(endpoint, status, &answer);
        }
    }

    /// Repeats `request` until it is answered with something that is not worth another try, or
    /// patience is out.
    async fn persist(
        &self,
        request: reqwest::RequestBuilder,
        patience: Patience,
    ) -> Result<(u16, Vec<u8>), ApiError> {
        let begin = Instant::now();
        let mut tries = 0;
        loop {
            let left = patience
                .limit()
                .saturating_sub(begin.elapsed())
                .max(CONNECT_LIMIT);
            // Requests made here hold their body in memory, so they can always be cloned.
            let Some(this_try) = request.try_clone() else {
                return Err(ApiError::Setup {
                    host: self.host.clone(),
                    cause: "a request that cannot be repeated".into(),
                });
            };
            let outcome = one_try(this_try.timeout(REQUEST_LIMIT.min(left))).await;
            tries += 1;
            let (cause, retry_after, may_be_done) = match outcome {
                Try::Answer { status, body, .. } if !retry::is_retryable(status) => {
                    return Ok((status, body));
                }
                Try::Answer {
                    status,
                    retry_after,
                    body,
                } => (
                    format!("HTTP {status}{}", message_in(&body)),
                    retry_after,
                    retry::may_be_done(status),
                ),
                Try::NoTls { cause } if patience == Patience::Start => {
                    return Err(ApiError::Setup {
                        host: self.host.clone(),
                        cause,
                    });
                }
                Try::NoAnswer { cause, was_sent } => (cause, None, was_sent),
                Try::NoTls { cause } => (cause, None, false),
            };
            if patience == Patience::Unsent && may_be_done {
                return Err(ApiError::AnswerLost {
                    host: self.host.clone(),
                    cause,
                });
            }
            let pause = retry::pause(tries, retry_after, random());
            tracing::debug!(host = %self.host, %cause, tries, ?pause, "API call failed");
            if begin.elapsed() + pause >= patience.limit() {
                return Err(ApiError::Unreachable {
                    host: self.host.clone(),
                    cause,
                    tries,
                    waited: begin.elapsed(),
                });
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn read_answer<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        status: u16,
        body: &[u8],
    ) -> Result<T, ApiError> {
        let envelope: Envelope<serde_json::Value> =
            serde_json::from_slice(body).map_err(|_| ApiError::NotAnApiServer {
                host: self.host.clone(),
                endpoint,
                found: describe(status, body),
            })?;
        let meta = envelope.meta;
        if status == 401 {
            let message = match self.credentials {
                Credentials::KeyPair { .. } => meta.result_msg,
                Credentials::Token(_) => {
                    format!("{} (the token of CLEARML_AUTH_TOKEN)", meta.result_msg)
                }
            };
            return Err(ApiError::Unauthorized {
                host: self.host.clone(),
                message,
            });
        }
        if meta.result_code != 200 || status != 200 {
            return Err(ApiError::Refused {
                endpoint,
                code: meta.result_code,
                subcode: meta.result_subcode,
                message: meta.result_msg,
            });
        }
        serde_json::from_value(envelope.data.unwrap_or_default()).map_err(|e| {
            ApiError::UnexpectedAnswer {
                endpoint,
                cause: e.to_string(),
            }
        })
    }

    /// Whether the server offers the features of this name (`basic`: the open-source one's).
    pub async fn has_feature_set(&self, name: &str) -> bool {
        self.token.lock().await.names(name)
    }

    /// The header for the next call; renews a token that is about to end.
    async fn bearer(&self, patience: Patience) -> Result<HeaderValue, ApiError> {
        let mut token = self.token.lock().await;
        if matches!(self.credentials, Credentials::KeyPair { .. }) && token.ends_soon(now()) {
            // The old one still serves for a while: a failed renewal is tried at the next call.
            match self.fetch_token(patience).await {
                Ok(new) => *token = new,
                Err(error) => tracing::debug!(%error, "token not renewed"),
            }
        }
        self.bearer_header(&token)
    }

    /// A new header after `refused` was refused; other calls may have renewed it meanwhile.
    async fn renewed_bearer(
        &self,
        refused: &HeaderValue,
        patience: Patience,
    ) -> Result<HeaderValue, ApiError> {
        let mut token = self.token.lock().await;
        let current = self.bearer_header(&token)?;
        if current != *refused {
            return Ok(current);
        }
        *token = self.fetch_token(patience).await?;
        self.bearer_header(&token)
    }

    fn bearer_header(&self, token: &Token) -> Result<HeaderValue, ApiError> {
        let mut header = HeaderValue::from_str(&format!("Bearer {}", token.value.expose()))
            .map_err(|_| ApiError::Unauthorized {
                host: self.host.clone(),
                message: "the token has characters that cannot be sent".into(),
            })?;
        header.set_sensitive(true);
        Ok(header)
    }

    async fn fetch_token(&self, patience: Patience) -> Result<Token, ApiError> {
        #[derive(Deserialize)]
        struct Login {
            token: String,
        }
        let (access_key, secret_key) = match &self.credentials {
            Credentials::Token(token) => return Ok(Token::new(token.expose())),
            Credentials::KeyPair {
                access_key,
                secret_key,
            } => (access_key, secret_key),
        };
        let request = self
            .client
            .post(format!("{}/auth.login", self.host))
            .basic_auth(access_key.expose(), Some(secret_key.expose()))
            .header(CONTENT_TYPE, "application/json")
            .body("{}");
        let (status, answer) = self.persist(request, patience).await?;
        self.read_answer::<Login>("auth.login", status, &answer)
            .map(|login| Token::new(login.token))
    }
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

async fn one_try(request: reqwest::RequestBuilder) -> Try {
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(e) => match tls::remedy(&e) {
            Some(remedy) => {
                let cause = format!("{}. {remedy}", causes(&e));
                return Try::NoTls { cause };
            }
            None => {
                return Try::NoAnswer {
                    cause: causes(&e),
                    was_sent: !e.is_connect(),
                };
            }
        },
    };
    let status = answer.status().as_u16();
    let asked = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|v| v.to_str().ok());
    let retry_after = retry::retry_after(asked);
    match answer.bytes().await {
        Ok(body) => Try::Answer {
            status,
            retry_after,
            body: body.to_vec(),
        },
        Err(e) => Try::NoAnswer {
            cause: causes(&e),
            was_sent: true,
        },
    }
}

/// The innermost cause says what happened (`Connection refused`); the outer ones only that it did.
fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// `: message` where `body` is an envelope with one, else nothing.
fn message_in(body: &[u8]) -> String {
    match serde_json::from_slice::<Envelope<serde_json::Value>>(body) {
        Ok(envelope) if !envelope.meta.result_msg.is_empty() => {
            format!(": {}", envelope.meta.result_msg)
        }
        _ => String::new(),
    }
}

fn describe(status: u16, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(60)]);
    let text = text.trim();
    if text.starts_with('<') {
        format!("HTTP {status} and a web page")
    } else if text.is_empty() {
        format!("HTTP {status} and no body")
    } else {
        format!("HTTP {status} and {text:?}")
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// A number in 0..1 for jitter; its quality does not matter.
pub(crate) fn random() -> f64 {
    f64::from(u32::from_le_bytes(
        uuid::Uuid::new_v4().as_bytes()[..4]
            .try_into()
            .unwrap_or([0; 4]),
    )) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_its_addresses() {
        for (url, expected) in [
            ("http://127.0.0.1:8008", true),
            ("http://127.1.2.3/", true),
            ("http://[::1]:8008", true),
            ("http://localhost:8008", true),
            ("http://api.localhost", true),
            ("http://localhost.example.com", false),
            ("http://10.0.0.1:8008", false),
            ("https://api.clear.ml", false),
        ] {
            assert_eq!(is_this_machine(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
