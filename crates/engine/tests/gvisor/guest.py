# PID 1 of the test guests: runs Python code sent to port 9000 and answers the variable `r` as JSON.
import json, os, socket, threading, time, traceback

state = {"counter": 0}


def count():
    while True:
        state["counter"] += 1
        time.sleep(0.01)




scope = globals()


def serve(connection):
    with connection, connection.makefile("rwb") as stream:
        code = json.loads(stream.readline())
        scope["r"] = None
        try:
            exec(code, scope)
            answer = {"ok": scope["r"]}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        stream.write(json.dumps(answer).encode() + b"\n")


threading.Thread(target=count, daemon=True).start()
listener = socket.create_server(("0.0.0.0", 9000), backlog=64)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
