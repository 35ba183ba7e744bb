//! The reading end of a job's output.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// What the job prints, stdout and stderr in the order of printing, as soon as it is printed.
///
/// It ends when all who could write are gone. A process that survives SIGKILL (one that waits for a
/// dead network disk, or another user's) may hold the pipe for ever: once the job is over it ends,
/// too, at the first moment with nothing to read.
#[derive(Debug)]
pub struct OutputPipe {
    pipe: pipe::Receiver,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl OutputPipe {
    /// Must be called within a tokio runtime.
    pub(super) fn new(reader: io::PipeReader, over: CancellationToken) -> io::Result<Self> {
        // A full pipe stops the job. The default of 64 KiB is a moment's output for a fast printer;
        // where the user's pipe quota is used up, the default is what there is.
        let _ = rustix::pipe::fcntl_setpipe_size(&reader, 1 << 20);
        Ok(Self {
            pipe: pipe::Receiver::from_owned_fd(reader.into())?,
            over: Box::pin(over.cancelled_owned()),
        })
    }
}

impl AsyncRead for OutputPipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(result) = Pin::new(&mut self.pipe).poll_read(cx, buf) {
            return Poll::Ready(result);
        }
        if self.over.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        // "Pending" may also mean that tokio has not yet seen that there is something to read: only
        // the pipe itself knows. Nothing read, nothing filled: that is the end.
        match rustix::io::read(&self.pipe, buf.initialize_unfilled()) {
            Ok(read) => buf.advance(read),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Poll::Ready(Err(error.into())),
        }
        Poll::Ready(Ok(()))
    }
}
