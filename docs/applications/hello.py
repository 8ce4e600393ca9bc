from klein import Klein

app = Klein()


@app.route("/")
def hello(request):
    return b"Hello from Klein\n"


resource = app.resource
