//! The reading end of a job's output.

use std::future::Future as _;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::io::Errno;
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
    pipe: Pipe,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

#[derive(Debug)]
enum Pipe {
    /// Nobody waits: what is printed is read when it is asked for.
    Quiet(OwnedFd),
    /// Only while there is nothing to read: the system tells who waits of every single write, and a
    /// job that prints line after line would keep the agent as busy as itself.
    Waiting(pipe::Receiver),
    /// After an error.
    Gone,
}

impl OutputPipe {
    pub(super) fn new(reader: io::PipeReader, over: CancellationToken) -> io::Result<Self> {
        // A full pipe stops the job. The default of 64 KiB is a moment's output for a fast printer;
        // where the user's pipe quota is used up, the default is what there is.
        let _ = rustix::pipe::fcntl_setpipe_size(&reader, 1 << 20);
        rustix::io::ioctl_fionbio(&reader, true)?;
        Ok(Self {
            pipe: Pipe::Quiet(reader.into()),
            over: Box::pin(over.cancelled_owned()),
        })
    }
}

impl Pipe {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match std::mem::replace(self, Pipe::Gone) {
                Pipe::Quiet(fd) => match rustix::io::read(&fd, buf.initialize_unfilled()) {
                    Ok(read) => {
                        *self = Pipe::Quiet(fd);
                        buf.advance(read);
                        return Poll::Ready(Ok(()));
                    }
                    Err(Errno::INTR) => *self = Pipe::Quiet(fd),
                    Err(Errno::WOULDBLOCK) => {
                        *self = Pipe::Waiting(pipe::Receiver::from_owned_fd(fd)?);
                    }
                    Err(error) => return Poll::Ready(Err(error.into())),
                },
                Pipe::Waiting(mut receiver) => {
                    if let Poll::Ready(result) = Pin::new(&mut receiver).poll_read(cx, buf) {
                        *self = Pipe::Quiet(receiver.into_nonblocking_fd()?);
                        return Poll::Ready(result);
                    }
                    *self = Pipe::Waiting(receiver);
                    return Poll::Pending;
                }
                Pipe::Gone => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncRead for OutputPipe {
    /// Must be called within a tokio runtime.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(result) = self.pipe.poll_read(cx, buf) {
            return Poll::Ready(result);
        }
        if self.over.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        // "Pending" may also mean that tokio has not yet seen that there is something to read: only
        // the pipe itself knows. Nothing read, nothing filled: that is the end.
        if let Pipe::Waiting(receiver) = &self.pipe {
            match rustix::io::read(receiver, buf.initialize_unfilled()) {
                Ok(read) => buf.advance(read),
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        Poll::Ready(Ok(()))
    }
}
