//! The ClearML API server, as typed calls. Login, token refresh, retries and error codes live only
//! here; the rest of the agent calls a function named for the endpoint and gets a value or an
//! [`ApiError`]. One file for each ClearML service used.

pub mod error;
pub mod events;
pub mod queues;
pub mod retry;
pub mod session;
pub mod tasks;
pub mod tls;
pub mod token;
pub mod workers;

pub use error::ApiError;
pub use retry::Patience;
pub(crate) use session::random;
pub use session::{Credentials, Endpoint, Session};
pub use tls::{Trust, client_builder};
