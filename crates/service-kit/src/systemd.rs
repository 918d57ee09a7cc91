//! The interface to systemd: readiness and a watchdog (sd_notify(3)), and listeners that are bound
//! before the start and outlive a restart (sd_listen_fds(3)). Has no effect without systemd.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The listeners passed at start that are not in use yet.
static GIVEN: OnceLock<Mutex<Vec<std::net::TcpListener>>> = OnceLock::new();

/// The listener that was passed for this address, or one bound now.
///
/// # Errors
///
/// The address cannot be bound.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let given = {
        let mut given = given();
        let fits = |listener: &std::net::TcpListener| {
            listener
                .local_addr()
                .is_ok_and(|local| is_for(local, address))
        };
        let at = given.iter().position(fits);
        at.map(|at| given.swap_remove(at))
    };
    match given {
        None => TcpListener::bind(address).await,
        Some(listener) => {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        }
    }
}

fn given() -> MutexGuard<'static, Vec<std::net::TcpListener>> {
    let given = GIVEN.get_or_init(|| {
        let mut all = ListenFd::from_env();
        let tcp = (0..all.len()).filter_map(|index| all.take_tcp_listener(index).ok().flatten());
        Mutex::new(tcp.collect())
    });
    given.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket unit may listen on all addresses where the option names one.
fn is_for(local: SocketAddr, address: SocketAddr) -> bool {
    local == address || (local.port() == address.port() && local.ip().is_unspecified())
}

/// Reports that the process is ready. Until `shutdown` it keeps feeding the watchdog from this
/// runtime, so that a hanging runtime is noticed; then it reports that the process is stopping.
pub async fn notify_until(shutdown: CancellationToken, status: String) {
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        let mut ticks = tokio::time::interval(limit / 2);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
    }
    shutdown.cancelled().await;
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("draining: running responses finish"),
    ]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_given_listener_is_found_by_its_address() {
        for (local, address, fits) in [
            ("127.0.0.1:7500", "127.0.0.1:7500", true),
            ("0.0.0.0:7500", "127.0.0.1:7500", true),
            ("[::]:7500", "127.0.0.1:7500", true),
            ("127.0.0.1:7500", "0.0.0.0:7500", false),
            ("127.0.0.1:7501", "127.0.0.1:7500", false),
        ] {
            let found = is_for(local.parse().unwrap(), address.parse().unwrap());
            assert_eq!(found, fits, "{local} {address}");
        }
    }
}
