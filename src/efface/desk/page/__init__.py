"""The page of the desk: a local web page for people who answer requests and do not use a terminal.

It only shows what :class:`efface.desk.Desk` answers, and calls its methods. It needs no script: with one, the progress
of a run is shown without loading the page again. Nothing is loaded from elsewhere.

    from efface.desk import open_desk
    from efface.desk.page import create_page, serve_page

    app = create_page(open_desk("efface-desk"), port=8600)      # an ASGI application
    serve_page(open_desk("efface-desk"), told=print)            # on this computer only; tells its address
"""

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports

if TYPE_CHECKING:
    from efface.desk.page.application import create_page as create_page
    from efface.desk.page.guard import PageSecrets as PageSecrets
    from efface.desk.page.server import serve_page as serve_page
    from efface.desk.page.settings import PageSettings as PageSettings

__all__ = ["PageSecrets", "PageSettings", "create_page", "serve_page"]

__getattr__ = lazy_exports(
    __name__,
    {
        "PageSecrets": "guard",
        "PageSettings": "settings",
        "create_page": "application",
        "serve_page": "server",
    },
)
