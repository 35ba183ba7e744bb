//! A line to the server on which calls of some kinds stay away until they are let through.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

pub struct Line {
    pub url: String,
    held: Arc<Held>,
}

#[derive(Default)]
struct Held {
    endpoint: Mutex<Option<&'static str>>,
    changed: Condvar,
    count: AtomicUsize,
}

impl Line {
    pub fn to(server: &str) -> Line {
        let server = server
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let held = Arc::new(Held::default());
        let all = held.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect(&server).unwrap();
                let (mut back, mut answers) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
                let held = all.clone();
                std::thread::spawn(move || held.carry(near, far));
            }
        });
        Line { url, held }
    }

    /// From now on calls of `endpoint` are not let through.
    pub fn hold(&self, endpoint: &'static str) {
        *self.held.endpoint.lock().unwrap() = Some(endpoint);
    }

    /// How many calls there were that were not let through at once.
    pub fn has_held(&self) -> usize {
        self.held.count.load(Ordering::SeqCst)
    }

    pub fn let_through(&self) {
        *self.held.endpoint.lock().unwrap() = None;
        self.held.changed.notify_all();
    }
}

impl Held {
    fn carry(&self, mut from: TcpStream, mut to: TcpStream) -> std::io::Result<()> {
        let mut bytes = [0; 65536];
        loop {
            let count = from.read(&mut bytes)?;
            if count == 0 {
                return to.shutdown(Shutdown::Write);
            }
            // A call begins with its address, in one piece.
            let begin = String::from_utf8_lossy(&bytes[..count.min(200)]).into_owned();
            let is_held = |endpoint: &mut Option<&'static str>| {
                endpoint.is_some_and(|e| begin.starts_with(&format!("POST /{e} ")))
            };
            let mut guard = self.endpoint.lock().unwrap();
            if is_held(&mut guard) {
                self.count.fetch_add(1, Ordering::SeqCst);
                drop(self.changed.wait_while(guard, is_held).unwrap());
                // Who is gone by then has said nothing.
                from.set_nonblocking(true)?;
                if matches!(from.peek(&mut [0]), Ok(0)) {
                    return to.shutdown(Shutdown::Both);
                }
                from.set_nonblocking(false)?;
            } else {
                drop(guard);
            }
            to.write_all(&bytes[..count])?;
        }
    }
}
