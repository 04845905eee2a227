"""Fetches and seeds one torrent: METAINFO DIRECTORY OWN-ADDRESS PEER-ADDRESS...

Prints "complete" when it holds everything, and, asked to end, "sent BYTES"."""
import signal
import sys

import libtorrent as lt

PORT = 6881
metainfo, directory, own, *peers = sys.argv[1:]
ending = False


def end(*_):
    global ending
    ending = True


signal.signal(signal.SIGTERM, end)
session = lt.session({
    "listen_interfaces": "%s:%d" % (own, PORT),
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_incoming_utp": False, "enable_outgoing_utp": False,
    "in_enc_policy": int(lt.enc_policy.pe_disabled), "out_enc_policy": int(lt.enc_policy.pe_disabled),
    "allow_multiple_connections_per_ip": True,
    "unchoke_slots_limit": -1, "connections_limit": 1000, "connection_speed": 1000, "min_reconnect_time": 1,
    "alert_mask": lt.alert.category_t.status_notification | lt.alert.category_t.error_notification,
})
torrent = session.add_torrent({"ti": lt.torrent_info(metainfo), "save_path": directory})
for address in peers:
    torrent.connect_peer((address, PORT))
while not ending:
    session.wait_for_alert(100)
    for alert in session.pop_alerts():
        if isinstance(alert, lt.torrent_finished_alert):
            print("complete", flush=True)
        elif isinstance(alert, (lt.torrent_error_alert, lt.listen_failed_alert)):
            sys.exit(alert.message())
print("sent", torrent.status().total_payload_upload, flush=True)
