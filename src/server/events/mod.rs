//! The `events` service: logs, scalars, plots and images of tasks.

mod add;
mod read;

use super::call::Endpoint;

pub const ENDPOINTS: &[&[Endpoint]] = &[add::ENDPOINTS, read::ENDPOINTS];

/// Types of events (`type`).
mod kind {
    pub const LOG: &str = "log";
    pub const SCALAR: &str = "training_stats_scalar";
    pub const VECTOR: &str = "training_stats_vector";
    pub const IMAGE: &str = "training_debug_image";
    pub const PLOT: &str = "plot";
    pub const ALL: [&str; 5] = [LOG, SCALAR, VECTOR, IMAGE, PLOT];
}

/// The iteration of a value that was reported without one.
const SINGLE_VALUE: i64 = -(1 << 31);

/// A signed number as bytes that sort as the numbers do.
fn sortable(number: i64) -> [u8; 8] {
    (number ^ i64::MIN).to_be_bytes()
}

/// Key of a log event: its time, then the order of arrival. Each is kept, also when sent twice.
fn log_key(timestamp: i64, sequence: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&sortable(timestamp));
    key[8..].copy_from_slice(&sequence.to_be_bytes());
    key
}

/// Key of any other event: what it measures and the iteration. The last one sent is kept.
fn value_key(metric: &str, variant: &str, iteration: i64) -> Vec<u8> {
    let mut key = format!("{metric}\0{variant}\0").into_bytes();
    key.extend(sortable(iteration));
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_what_they_stand_for() {
        let numbers = [
            i64::MIN,
            SINGLE_VALUE,
            -1,
            0,
            1,
            1_795_472_759_103,
            i64::MAX,
        ];
        assert!(numbers.is_sorted_by_key(|n| sortable(*n)));
        assert!(log_key(5, 9) < log_key(5, 10));
        assert!(log_key(5, 10) < log_key(6, 0));
        assert!(value_key("loss", "a", 2) < value_key("loss", "a", 10));
        assert!(value_key("loss", "a", 10) < value_key("loss", "b", 0));
    }
}
