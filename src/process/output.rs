//! The reading end of a job's output.

use std::future::Future as _;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// What the job prints, stdout and stderr in the order of printing, as soon as it is printed.
///
/// It ends when all who could write are gone. A process that survives SIGKILL (one that waits for a
/// dead network disk, or another user's) may hold the pipe for ever: once the job is over it ends,
/// too, at the first moment with nothing to read.
#[derive(Debug)]
pub struct OutputPipe {
    pipe: Arc<OwnedFd>,
    /// Only while there is nothing to read: the system tells who waits of every single write, and a
    /// job that prints line after line would keep the agent as busy as itself.
    waiting: Option<AsyncFd<Arc<OwnedFd>>>,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl OutputPipe {
    pub(super) fn new(reader: io::PipeReader, over: CancellationToken) -> io::Result<Self> {
        // A full pipe stops the job. The default of 64 KiB is a moment's output for a fast printer;
        // where the user's pipe quota is used up, the default is what there is.
        let _ = rustix::pipe::fcntl_setpipe_size(&reader, 1 << 20);
        rustix::io::ioctl_fionbio(&reader, true)?;
        Ok(Self {
            pipe: Arc::new(reader.into()),
            waiting: None,
            over: Box::pin(over.cancelled_owned()),
        })
    }
}

impl AsyncRead for OutputPipe {
    /// Must be called within a tokio runtime.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            // Asked first: what was printed before the job was over is in the pipe by then.
            let is_over = self.over.as_mut().poll(cx).is_ready();
            match rustix::io::read(&self.pipe, buf.initialize_unfilled()) {
                Ok(read) => {
                    self.waiting = None;
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                // Nothing read, nothing filled: that is the end.
                Err(Errno::WOULDBLOCK) if is_over => return Poll::Ready(Ok(())),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            if self.waiting.is_none() {
                let pipe = self.pipe.clone();
                self.waiting = Some(AsyncFd::register_with_interest(pipe, Interest::READABLE)?);
            }
            if let Some(waiting) = &self.waiting {
                let mut readable = ready!(waiting.poll_read_ready(cx))?;
                readable.clear_ready();
            }
        }
    }
}
