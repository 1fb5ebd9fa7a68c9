//! A captured connection whose source is proven: where does it go?

use std::sync::Arc;

use warren_core::route::{self, IncapableRoute, Route, RouteDenied};
use warren_core::world::{IncapableDestination, Pod, World};
use warren_mesh::telemetry::{ConnectionRecord, ResponseFlag};

use super::Accepted;
use super::routed::{Routed, Way, describe};
use crate::ended::Ended;

/// A connection of this pod, in this world.
pub(super) struct Sourced {
    pub(super) accepted: Accepted,
    pub(super) world: Arc<World>,
    pub(super) pod: Arc<Pod>,
    pub(super) record: ConnectionRecord,
}

impl Sourced {
    /// Decides the way once, for the connection's whole life.
    pub(super) fn route(self) -> Result<Routed, Ended> {
        let Self { accepted, world, pod, record } = self;
        let way = match route::outbound(&world, &pod, accepted.dst, rand::random()) {
            Route::Deny(RouteDenied::NoReadyEndpoint) => {
                let why = RouteDenied::NoReadyEndpoint.to_string();
                return Err(Ended::failed(accepted.tcp, record, ResponseFlag::NoRoute, why));
            }
            // Addresses and ports that nobody may reach through the mesh: refused, and audited as such.
            Route::Deny(why) => return Err(Ended::denied(accepted.tcp, record, why.to_string())),
            Route::Plain(plain) => Way::Plain(plain),
            Route::Own(own) => Way::Own(own),
            Route::Tunnel(tunnel) => Way::Tunnel(tunnel),
            Route::Incapable(incapable) => {
                let sourced = Self { accepted, world, pod, record };
                return sourced.incapable(incapable);
            }
        };
        Ok(Routed { accepted, world, pod, record, way })
    }

    /// What becomes of a connection whose destination no agent serves has been decided; here it is counted and done.
    fn incapable(self, route: IncapableRoute) -> Result<Routed, Ended> {
        let Self { accepted, world, pod, mut record } = self;
        let (port, why) = (route.destination.port(), route.reason());
        accepted.context.shared.incapable.seen(&pod, &route.pod, port, route.fate);
        match route.fate {
            IncapableDestination::Refuse => {
                describe(&mut record, "none", Some(&route.pod), &world, route.service);
                Err(Ended::denied(accepted.tcp, record, why))
            }
            IncapableDestination::Plain => Ok(Routed { accepted, world, pod, record, way: Way::Migration(route) }),
        }
    }
}
