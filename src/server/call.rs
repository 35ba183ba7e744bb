//! One call of an endpoint: what was asked, by whom, and the transaction it runs in.

use jiff::Timestamp;
use serde_json::Value;

use super::document::Document;
use super::refusal::Refusal;
use super::store::Transaction;

/// What an endpoint does with the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// A row of the endpoint table.
pub struct Endpoint {
    pub name: &'static str,
    /// `meta.endpoint.actual_version`: since when the endpoint is as it is.
    pub version: &'static str,
    pub access: Access,
    pub run: fn(&Call<'_>) -> Result<Value, Refusal>,
}

/// A row, written as one.
pub const fn endpoint(
    name: &'static str,
    version: &'static str,
    access: Access,
    run: fn(&Call<'_>) -> Result<Value, Refusal>,
) -> Endpoint {
    Endpoint {
        name,
        version,
        access,
        run,
    }
}

pub struct Call<'c> {
    pub transaction: &'c Transaction<'c>,
    pub request: Request<'c>,
    /// All items of a batch; the one request where it is none.
    pub items: &'c [Value],
    /// `X-ClearML-Worker`.
    pub worker: Option<&'c str>,
    pub address: Option<std::net::IpAddr>,
    pub now: Timestamp,
}

/// The body of a call. A field that is null counts as not given.
#[derive(Clone, Copy)]
pub struct Request<'r>(pub &'r Document);

impl<'r> Request<'r> {
    pub fn get(self, field: &str) -> Option<&'r Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    pub fn text(self, field: &str) -> Result<Option<&'r str>, Refusal> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Refusal::invalid_field(field, "expected a string")),
        }
    }

    pub fn required(self, field: &str) -> Result<&'r str, Refusal> {
        self.text(field)?
            .ok_or_else(|| Refusal::missing_field(field))
    }

    pub fn required_value(self, field: &str) -> Result<&'r Value, Refusal> {
        self.get(field).ok_or_else(|| Refusal::missing_field(field))
    }

    /// Absent is false; texts count as in a query string.
    pub fn flag(self, field: &str) -> Result<bool, Refusal> {
        match self.get(field) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::Number(number)) => Ok(number.as_f64() != Some(0.0)),
            Some(Value::String(text)) => Ok(!matches!(text.as_str(), "" | "0" | "false" | "False")),
            Some(_) => Err(Refusal::invalid_field(field, "expected true or false")),
        }
    }

    pub fn number(self, field: &str) -> Result<Option<i64>, Refusal> {
        match self.get(field) {
            None => Ok(None),
            #[allow(clippy::cast_possible_truncation)] // Fractions of a millisecond, of a page.
            Some(Value::Number(n)) => Ok(n.as_i64().or(n.as_f64().map(|n| n as i64))),
            Some(Value::String(text)) => text
                .parse()
                .map(Some)
                .map_err(|_| Refusal::invalid_field(field, "expected a number")),
            Some(_) => Err(Refusal::invalid_field(field, "expected a number")),
        }
    }

    pub fn list(self, field: &str) -> Result<&'r [Value], Refusal> {
        match self.get(field) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(Refusal::invalid_field(field, "expected a list")),
        }
    }

    pub fn texts(self, field: &str) -> Result<Vec<&'r str>, Refusal> {
        Ok(self.list(field)?.iter().filter_map(Value::as_str).collect())
    }
}
